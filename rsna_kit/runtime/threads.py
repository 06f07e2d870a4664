"""Work side by side in daemon threads, which a process does not wait for when it ends.

A pool of `concurrent.futures` is joined when the interpreter exits, so one decoder that hangs, or one file on a network
disk that does not answer, would keep a finished run from ending.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_daemons(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, limit_s: float = math.inf
) -> Generator[tuple[int, _Result]]:
    """`function` of every item; an item on which a thread is stuck holds up no other while there are threads left.

    Items are drawn by the calling thread, at most `2 * workers` of them ahead of the results that were taken. Closing
    the generator, or an error, begins no further item; what is running ends by itself and is dropped.

    Args:
        function: called in up to `workers` threads at once.
        items: any iterable.
        workers: at least 1.
        limit_s: seconds after which no item is begun or waited for.

    Yields:
        (number of the item, its result), in the order in which they get done. Numbers that are missing at the end were
        not done in time.

    Raises:
        BaseException: what `function` raised, in place of its result.
    """
    deadline = time.monotonic() + limit_s
    requests: queue.SimpleQueue[tuple[int, _Item] | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[int, Future[_Result]]] = queue.SimpleQueue()

    def work() -> None:
        while (request := requests.get()) is not None:
            outcome: Future[_Result] = Future()
            try:
                outcome.set_result(function(request[1]))
            except BaseException as error:  # an exit, too: in a thread nobody would see it
                outcome.set_exception(error)
            answers.put((request[0], outcome))

    source, exhausted, under_way, threads = enumerate(items), False, 0, 0
    try:
        while True:
            while not exhausted and under_way < 2 * workers and time.monotonic() < deadline:
                request = next(source, None)
                if request is None:
                    exhausted = True
                    break
                requests.put(request)
                under_way += 1
                if threads < min(workers, under_way):
                    threading.Thread(target=work, name=f"{function.__name__}-{threads}", daemon=True).start()
                    threads += 1
            if not under_way:
                return
            try:
                number, outcome = answers.get(timeout=min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))
            except queue.Empty:
                return
            under_way -= 1
            yield number, outcome.result()
    finally:
        try:
            while True:
                requests.get_nowait()
        except queue.Empty:
            pass
        for _ in range(threads):
            requests.put(None)
