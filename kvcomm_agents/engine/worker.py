"""Worker: the one thread that owns a model. Requests wait in its queue and are served together.

Whatever a request, an observer, a caller or idle work raises harms that one alone. Should the thread itself have
to end, all that waits fails with an error that says so, and the next request starts a new one. A child of the
process starts one of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ..errors import EngineClosedError, EngineError, EngineFailedError, EngineForkedError, EngineThreadError
from ..log import get_logger
from . import standstill
from .call import Call, EngineFuture
from .core import EngineCore
from .job import Job

logger = get_logger(__name__)

_GRACE_S = 0.05  # the next call of a chain comes within milliseconds: do not be found busy

T = TypeVar("T")


class Worker:
    """Runs jobs on a daemon thread, one forward pass over all of them at a time.

    Args:
        make: builds the core, on the worker's thread, when the first job needs it. If it
            fails, the jobs waiting fail with its error and the next job tries again.
        name: of the thread.
        closed: told once the worker was closed and everybody who waited was answered.
    """

    def __init__(self, make: Callable[[], EngineCore], name: str, closed: Callable[[], None] = lambda: None) -> None:
        self._make, self._name, self._told_closed = make, name, closed
        self._closed = False
        self._thread: threading.Thread | None = None
        self._core: EngineCore | None = None
        self._parents: EngineCore | None = None  # kept in a child: nothing of it is freed, so that all stays shared
        self._busy_until = 0.0  # when the last request was answered
        self._unusable = ""  # why, in a child that cannot use it
        self._renew()
        standstill.watch(self)

    def _renew(self) -> None:
        """Nothing waits, and no lock is held."""
        self._waiting: deque[Job] = deque()
        self._calls: deque[Call[Any]] = deque()
        self._wake = threading.Condition()
        self._idle = True
        self._serving = False
        self._forks = 0  # under way

    @property
    def core(self) -> EngineCore | None:
        """What was built; `None` before the first job."""
        return self._core

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def started(self) -> bool:
        """Whether it has a thread in this process."""
        return self._thread is not None

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the worker's own thread: it must not wait for what that thread would do."""
        return self._thread is threading.current_thread()

    def check_waiting(self) -> None:
        """Refuse to let the worker's own thread wait for itself.

        Raises:
            EngineThreadError: the caller is on it.
        """
        if self.is_current:
            raise EngineThreadError(
                "a sink, an observer or whatever else runs on an engine's thread cannot wait for that engine: it would"
                " wait for ever; use submit(), or another thread"
            )

    def idle_seconds(self) -> float:
        """Of idle work done so far, in that which is under way too."""
        core = self._core
        return core.idle.seconds if core else 0.0

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            EngineClosedError: after `close`.
            EngineForkedError: in a child that cannot use the engine.
        """
        self._check_usable()
        with self._wake:
            self._start()
            self._waiting.append(job)

    def call(self, work: Callable[[EngineCore], T]) -> EngineFuture[T]:
        """Do something with the core on its own thread, between two tokens; builds it if that was not done.

        Raises:
            EngineClosedError: after `close`.
            EngineForkedError: in a child that cannot use the engine.
        """
        self._check_usable()
        call = Call(work)
        with self._wake:
            self._start()
            self._calls.append(call)
        return call.future

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until every job is answered and everything to be learned from them is; whether that came in time.

        Raises:
            EngineForkedError: in a child that cannot use the engine.
            EngineThreadError: on the worker's own thread.
        """
        self._check_usable()
        self.check_waiting()
        with self._wake:
            return self._wake.wait_for(lambda: (self._idle and not self._waiting) or self._closed, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop after the token in flight. Jobs that are not done fail with `EngineClosedError`."""
        with self._wake:
            before, self._closed = self._closed, True
            thread = self._thread
            self._wake.notify_all()
        if thread is None:
            if not before:
                self._told_closed()
        elif not self.is_current:
            thread.join(timeout_s)

    def stand_still(self, timeout_s: float) -> bool:
        """Begin nothing from now on, for a fork; whether what was begun ended in time."""
        with self._wake:
            self._forks += 1
            return self._wake.wait_for(lambda: self.is_current or not self._serving, timeout_s)

    def go_on(self) -> None:
        """The fork is over."""
        with self._wake:
            self._forks -= 1
            self._wake.notify_all()

    def begin_anew(self, *, stood_still: bool) -> None:
        """This is the child: those who wait, and what was built, are the parent's.

        The model runs on a new thread here, and has to: threads that computed before the fork have no helpers left.
        """
        core = self._core
        if not stood_still:
            self._unusable = "it was in the middle of a pass through the model; fork when the engine is idle"
        elif core is not None and core.backend.layout.device.type != "cpu":
            self._unusable = f"its weights are on {core.backend.layout.device}, which a forked process cannot use"
        self._parents = core or self._parents
        self._core = self._thread = None
        self._renew()

    def _check_usable(self) -> None:
        if self._unusable:
            raise EngineForkedError(
                f"the engine of {self._name} was running when this process was forked, and {self._unusable}, fork"
                " before the first request, or start processes with spawn"
            )

    def _start(self) -> None:
        """Somebody is about to have something done. The caller holds the lock."""
        if self._closed:
            raise EngineClosedError(f"the engine of {self._name} was closed; make a new one")
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name=f"kvcomm {self._name}", daemon=True)
            thread.start()  # it waits for the lock; RuntimeError if there can be no more threads
            self._thread = thread
        self._idle = False
        self._wake.notify_all()

    def _run(self) -> None:
        """The thread: serves until it is closed. A bug that ends it fails all that waits, and leaves a clean start."""
        try:
            while self._await():
                self._serve()
        except BaseException as error:
            logger.critical("the engine of %s failed; the next request starts it anew", self._name, exc_info=True)
            self._end(EngineFailedError, f"failed: {error!r}; the next request starts it anew")
            if self._closed:
                self._told_closed()

    def _await(self) -> bool:
        """Wait for something to do, and for a fork to be over; `False` once there is nothing to do any more."""
        with self._wake:
            if not self.is_current:
                return False  # a child that was forked on this thread
            self._serving = False
            if self._forks:
                self._wake.notify_all()
            patience = self._patience()
            if patience is None and not self._wanted():
                self._idle = True
                self._wake.notify_all()
            if patience != 0:
                self._wake.wait_for(lambda: self._wanted() and not self._forks, patience)
            self._wake.wait_for(lambda: not self._forks)
            self._serving = True
        if self._closed:
            self._finish()
        return not self._closed

    def _wanted(self) -> bool:
        return bool(self._waiting or self._calls or self._closed)

    def _patience(self) -> float | None:
        """Seconds to wait for a job: none while others run, a moment before idle work, else for ever."""
        core = self._core
        if core is None or not (core.active or len(core.idle)):
            return None
        if core.active or core.idle.urgent:
            return 0.0
        return max(0.0, self._busy_until + _GRACE_S - time.perf_counter())

    def _serve(self) -> None:
        """One round: calls, arrivals, a step for all that run, and a chunk of idle work where that delays nobody."""
        self._sweep()
        while self._calls:
            self._calls.popleft().run(self._built)
        self._admit()
        core = self._core
        if core is None:
            return
        if core.active:
            core.step()
            self._busy_until = time.perf_counter()
            if core.idle.may_interrupt and not self._waiting and not core.delayed and _learning():
                core.idle.interrupt()
        elif not self._wanted():
            if _learning():  # nothing is learned while Python shuts down
                core.idle.step()
            else:
                core.idle.drop()

    def _sweep(self) -> None:
        """Answer waiting jobs that were cancelled or ran out of time."""
        with self._wake:
            stopped = [(job, why) for job in self._waiting if (why := job.check())]
            for job, _ in stopped:
                self._waiting.remove(job)
        for job, why in stopped:
            job.emit(why)

    def _admit(self) -> None:
        """Begin waiting jobs while there is room for more, in number and in the next pass."""
        while self._waiting and not self._closed and not (self._core and self._core.full):
            job = self._waiting.popleft()
            try:
                if why := job.check():
                    raise why
                self._built().begin(job)
            except BaseException as error:  # whatever it is, it is this job's alone
                job.emit(error)

    def _built(self) -> EngineCore:
        if self._core is None:
            self._core = self._make()
        return self._core

    def _finish(self) -> None:
        """The worker was closed: do what was called for, say so to all that is not done, save."""
        core = self._core
        while core and self._calls:
            self._calls.popleft().run(lambda: core)
        self._end(EngineClosedError, "was closed before this was done")
        if core:
            try:
                core.close()
            except BaseException:
                logger.exception("the engine of %s was not closed cleanly", self._name)
        self._told_closed()

    def _end(self, error: type[EngineError], why: str) -> None:
        """Fail all that waits. Nothing can be queued behind a thread that ends."""
        with self._wake:
            core, self._core = self._core, None
            jobs = [*(active.job for active in core.active), *self._waiting] if core else list(self._waiting)
            calls = list(self._calls)
            self._waiting.clear()
            self._calls.clear()
            self._idle, self._serving = True, False
            if not self._closed:
                self._thread = None
            self._wake.notify_all()
        message = f"the engine of {self._name} {why}"
        for job in jobs:
            job.emit(error(message))
        for call in calls:
            call.future.fail(error(message))
        if core:
            with suppress(BaseException):  # it may be what failed
                core.warmup.close(error(message))


def _learning() -> bool:
    """Whether there is time to learn: none is while Python shuts down."""
    return threading.main_thread().is_alive()
