"""Threads, locks and clocks of a simulated world: real code runs in it, and hours pass in seconds.

The world's threads are real threads that take turns: one runs at a time, until it sleeps, waits or ends; when all of
them sleep or wait, the clock jumps to the first that is to wake. So a run is the same every time, whatever the machine
is doing. `World.threading`, `World.time` and `World.queue` stand in for the modules of these names, as far as the code
under simulation uses them: put them in the place of those modules (`unittest.mock.patch.object(module, "time", ...)`).

What takes time says so: `World.sleep`, or `Resource.use` for what is shared, such as cores or a disk.
"""

from __future__ import annotations

import heapq
import math
import queue
import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from rsna_kit.runtime.errors import RsnaKitError

_DONE_S = 1e-9  # what is left of a job that would end sooner than this is a rounding error


class DeadlockError(RsnaKitError):
    """Every thread waits, and nothing will ever wake one."""


class _EndedError(BaseException):
    """Unwinds a thread when the world ends."""


class Strand:
    """A thread of the world."""

    def __init__(
        self, world: World, target: Callable[..., object], args: tuple[object, ...] = (), name: str = "",
        daemon: bool = True,
    ) -> None:  # fmt: skip
        self.name, self.parked, self.alive, self.ticket = name, False, False, 0
        self._world, self._target, self._args = world, target, args
        self.gate = threading.Semaphore(0)
        self.joining: list[Strand] = []
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Runs as soon as it is its turn."""
        self.alive = True
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._world.strands.append(self)
        self.thread.start()
        self._world.ready.append(self)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        if self.alive:
            self.joining.append(self._world.running)
            self._world.park(math.inf if timeout is None else self._world.now + timeout)

    def is_alive(self) -> bool:
        """Whether it has begun and not ended."""
        return self.alive

    def _run(self) -> None:
        self.gate.acquire()
        try:
            if not self._world.over:
                self._target(*self._args)
        except _EndedError:
            return
        except BaseException as error:
            self._world.fail(error)
            return
        self.alive = False
        for strand in self.joining:
            self._world.wake(strand)
        self._world.pass_on()


class World:
    """One clock and the threads that live by it. Use as a context manager, in the thread that is the first of them.

    Attributes:
        now: seconds since the world began.
        running: the thread whose turn it is.
    """

    def __init__(self) -> None:
        self.now, self.over = 0.0, False
        self.ready: deque[Strand] = deque()
        self.strands: list[Strand] = []
        self._timers: list[tuple[float, int, int, Strand]] = []
        self._count = 0
        self._main = self.running = Strand(self, lambda: None, name="main")
        self._error: BaseException | None = None
        self.time = SimpleNamespace(monotonic=lambda: self.now)
        self.threading = SimpleNamespace(
            Thread=lambda **options: Strand(self, **options), Condition=lambda: Condition(self),
            current_thread=lambda: self.running, TIMEOUT_MAX=math.inf,
        )  # fmt: skip
        self.queue = SimpleNamespace(SimpleQueue=lambda: Line(self), Empty=queue.Empty)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: object) -> None:
        """End all threads that are left."""
        self.over = True
        for strand in self.strands:
            strand.gate.release()
        for strand in self.strands:
            if strand.thread is not None:
                strand.thread.join()

    def sleep(self, seconds: float) -> None:
        """Let the calling thread's time pass."""
        self.park(self.now + seconds)

    def park(self, until: float = math.inf) -> None:
        """Stop the calling thread until `until`, or until somebody wakes it."""
        if self.over:
            raise _EndedError
        me = self.running
        me.parked = True
        self.set_alarm(me, until)
        self.pass_on()
        me.gate.acquire()
        if self.over:
            raise _EndedError
        if self._error is not None and me is self._main:
            raise self._error

    def set_alarm(self, strand: Strand, until: float) -> None:
        """Wake a parked thread at `until` and not at the moment that was set before."""
        strand.ticket += 1
        if until < math.inf:
            self._count += 1
            heapq.heappush(self._timers, (until, self._count, strand.ticket, strand))

    def wake(self, strand: Strand) -> None:
        """Give a parked thread its turn."""
        if strand.parked:
            strand.parked = False
            strand.ticket += 1
            self.ready.append(strand)

    def pass_on(self) -> None:
        """The turn goes to the next thread; with none ready, the clock to the next that is to wake."""
        while not self.ready:
            if not self._timers:
                self.fail(DeadlockError("all threads of the simulation wait for each other"))
                return
            until, _, ticket, strand = heapq.heappop(self._timers)
            if strand.parked and ticket == strand.ticket:
                self.now = max(self.now, until)
                self.wake(strand)
        self.running = self.ready.popleft()
        self.running.gate.release()

    def fail(self, error: BaseException) -> None:
        """End the simulation with an error, which the first thread raises."""
        self._error = error
        self.running = self._main
        self._main.gate.release()


class Condition:
    """As threading.Condition, with a lock of its own."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._owner: Strand | None = None
        self._entering: deque[Strand] = deque()
        self._waiting: list[Strand] = []

    def __enter__(self) -> Condition:
        while self._owner is not None:
            self._entering.append(self._world.running)
            self._world.park()
        self._owner = self._world.running
        return self

    def __exit__(self, *exc: object) -> None:
        self._owner = None
        if self._entering:
            self._world.wake(self._entering.popleft())

    def wait(self, timeout: float | None = None) -> None:
        """Let go of the lock until somebody notifies, or the time is over."""
        me = self._world.running
        self.__exit__()
        self._waiting.append(me)
        self._world.park(math.inf if timeout is None else self._world.now + timeout)
        if me in self._waiting:
            self._waiting.remove(me)
        self.__enter__()

    def notify_all(self) -> None:
        """Wake everybody who waits."""
        waiting, self._waiting = self._waiting, []
        for strand in waiting:
            self._world.wake(strand)


class Line:
    """As queue.SimpleQueue."""

    def __init__(self, world: World) -> None:
        self._items: deque[Any] = deque()
        self._changed = Condition(world)
        self._world = world

    def put(self, item: object) -> None:
        """Append an item."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> Any:
        """The first item; raises queue.Empty when none came in time."""
        until = math.inf if timeout is None else self._world.now + timeout
        with self._changed:
            while not self._items:
                if self._world.now >= until:
                    raise queue.Empty
                self._changed.wait(until - self._world.now)
            return self._items.popleft()

    def get_nowait(self) -> Any:
        """The first item; raises queue.Empty when there is none."""
        return self.get(0.0)


class Resource:
    """Something that threads share evenly: cores, the bytes of a disk, a GPU.

    Args:
        world: where it is.
        capacity: what it gives out in a second.
        most: what one share can take of that.
    """

    def __init__(self, world: World, capacity: float, most: float = math.inf) -> None:
        self._world, self._capacity, self._most = world, capacity, most
        self._jobs: dict[Strand, tuple[float, float]] = {}  # what is left, and shares
        self._settled = 0.0

    def use(self, amount: float, shares: float = 1.0) -> None:
        """Take `amount` out of it, in as long as that takes; `shares` of it at once, as threads of one job do."""
        world, me = self._world, self._world.running
        self._settle()
        self._jobs[me] = (amount, shares)
        while self._until(me) > world.now + _DONE_S:
            self._plan()
            world.park(self._until(me))
            self._settle()
        del self._jobs[me]
        self._plan()

    def set_capacity(self, capacity: float) -> None:
        """From now on it gives out so much; 0: it stands still."""
        self._settle()
        self._capacity = capacity
        self._plan()

    def _rate(self, shares: float) -> float:
        wanted = sum(job[1] for job in self._jobs.values())
        return shares * min(self._most, self._capacity / wanted)

    def _settle(self) -> None:
        passed, self._settled = self._world.now - self._settled, self._world.now
        if passed and self._jobs:
            rates = {strand: self._rate(shares) for strand, (_, shares) in self._jobs.items()}
            self._jobs = {
                strand: (left - passed * rates[strand], shares) for strand, (left, shares) in self._jobs.items()
            }

    def _until(self, strand: Strand) -> float:
        left, shares = self._jobs[strand]
        rate = self._rate(shares)
        return self._world.now + max(left, 0.0) / rate if rate > 0 else math.inf

    def _plan(self) -> None:
        for strand in self._jobs:
            if strand.parked:
                self._world.set_alarm(strand, self._until(strand))
