"""A decoder run in a process of its own: what crashes, hangs or eats memory there costs one image, not the run.

Damaged lossless JPEG makes gdcm abort and dicomsdl corrupt its heap (`scripts/fuzz-decode` found both in minutes; see
docs/decoding.md). Starting Python and importing a decoder takes most of a second, so a child that gave an answer is
kept for the next frame; there are at most as many as there are cores, and further threads wait for one. A child that
failed in any way, a hang included, is ended, because what made it fail may have damaged its memory; and when it had
served other frames before, a fresh one is asked again, with the same patience: no frame's outcome depends on the frames
before it.

Child: `python -m rsna_kit.dicom.apart`, a socket as standard input. Request: the parent's import path, then function
and frame. Answer: JSON with the array's type and shape, or `{"failed": reason}`, then its bytes; nothing that a child
says is unpickled. A child ends when the socket closes, which a parent's death does, too; while it decodes, an alarm of
the kernel ends it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np

from rsna_kit.dicom.frame import EncodedFrame
from rsna_kit.runtime.hardware import cpu_count

_PATIENCE_S = 30  # the slowest real file takes 2 s; a hang must not hold a decoding thread for the whole run
_MEMORY = 8 * 2**30


def decode_apart(decode: Callable[[EncodedFrame], np.ndarray], frame: EncodedFrame) -> np.ndarray:
    """`decode(frame)` in a child process. Any number of threads may call it.

    Args:
        decode: a function of a module, which the child imports.

    Raises:
        RuntimeError: the decoder failed, crashed or took too long; the message says which. A hang takes twice the
            patience at most: a used child's and a fresh one's.
    """
    child = _slots.get()
    try:
        if child is not None:
            try:
                return child.ask(decode, frame)
            except RuntimeError:
                child.end()
        child = _Child()
        return child.ask(decode, frame)
    except BaseException:  # an interrupt, too: the answer to this request must not meet the next one
        if child is not None:
            child.end()
        child = None
        raise
    finally:
        _slots.put(child)


class _Child:
    """One process, and the socket to it."""

    def __init__(self) -> None:
        self.line, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
            )

    def ask(self, decode: Callable[[EncodedFrame], np.ndarray], frame: EncodedFrame) -> np.ndarray:
        """The array that comes back.

        Raises:
            RuntimeError: as `decode_apart`. The child is of no further use.
        """
        try:
            # A library may be importable only because the parent changed sys.path (an attached Kaggle dataset).
            self.line.send((_PATIENCE_S, _import_path()))
            self.line.send((decode, frame))
            if not self.line.poll(_PATIENCE_S):
                raise RuntimeError(f"gave nothing within {_PATIENCE_S} s")
            answer, body = json.loads(self.line.recv_bytes()), self.line.recv_bytes()
        except (OSError, EOFError, ValueError) as error:
            raise RuntimeError(self._how_it_ended()) from error
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return np.frombuffer(bytearray(body), answer["dtype"]).reshape(answer["shape"])

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(timeout=5)  # its socket is closed, so it is ending
        except subprocess.TimeoutExpired:
            return "answered with nonsense"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self.line.close()


def _import_path() -> list[str]:
    return [path for path in sys.path if isinstance(path, str) and path]


_slots: queue.LifoQueue[_Child | None] = queue.LifoQueue()


def _empty_slots() -> None:
    """One slot per core, each with an idle child or nothing; the last used comes first."""
    global _slots
    _slots = queue.LifoQueue()
    for _ in range(cpu_count()):
        _slots.put(None)


@atexit.register
def end_idle() -> None:
    """End the children that wait for work; those at work end when nobody takes their answer."""
    idle = []
    with contextlib.suppress(queue.Empty):
        while True:
            idle.append(_slots.get_nowait())
    for child in idle:
        if child is not None:
            child.end()
        _slots.put(None)


_empty_slots()
os.register_at_fork(after_in_child=_empty_slots)  # the children are the parent's


def main() -> int:
    """The child."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with Connection(os.dup(0)) as line:
        try:
            while True:
                patience_s, sys.path[:] = line.recv()
                # The parent's own clock comes first. This one is for a parent that was killed meanwhile.
                signal.setitimer(signal.ITIMER_REAL, patience_s + 5)
                body: memoryview | bytes = b""
                try:
                    decode, frame = line.recv()
                    array = np.ascontiguousarray(decode(frame))
                    answer: dict[str, Any] = {"dtype": array.dtype.str, "shape": array.shape}
                    body = array.reshape(-1).view(np.uint8).data
                except (EOFError, ConnectionError):
                    raise
                except Exception as error:  # whatever it is, the parent says it in one line
                    answer = {"failed": str(error) or type(error).__name__}
                signal.setitimer(signal.ITIMER_REAL, 0)
                line.send_bytes(json.dumps(answer).encode())
                line.send_bytes(body)
                decode = frame = array = body = None  # type: ignore[assignment] # not kept while it waits
        except (EOFError, ConnectionError):
            return 0


if __name__ == "__main__":
    os._exit(main())  # nothing to flush, and no destructor of a native library that could hang
