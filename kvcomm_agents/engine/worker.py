"""Worker: the one thread that owns a model. Requests wait in its queue and are served together.

Whatever a request, an observer, a caller or idle work raises harms that one alone. Should the thread itself have
to end, all that waits fails with an error that says so, and the next request starts a new one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

from ..errors import EngineClosedError, EngineFailedError, EngineForkedError
from .core import EngineCore
from .job import Job

logger = logging.getLogger(__name__)

_GRACE_S = 0.05  # the next call of a chain comes within milliseconds: do not be found busy

T = TypeVar("T")


class Worker:
    """Runs jobs on a daemon thread, one forward pass over all of them at a time.

    Args:
        make: builds the core, on the worker's thread, when the first job needs it. If it
            fails, the jobs waiting fail with its error and the next job tries again.
        name: of the thread.
    """

    def __init__(self, make: Callable[[], EngineCore], name: str) -> None:
        self._make, self._name = make, name
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Future[Any], Callable[[EngineCore], Any]]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._core: EngineCore | None = None
        self._idle = True
        self._busy_until = 0.0  # when the last request was answered
        self._process = os.getpid()

    @property
    def core(self) -> EngineCore | None:
        """What was built; `None` before the first job."""
        return self._core

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the worker's own thread: it must not wait for what that thread would do."""
        return self._thread is threading.current_thread()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            EngineClosedError: after `close`.
            EngineForkedError: in a child of the process in which the worker was started.
        """
        self._check_process()
        with self._wake:
            self._check_open()
            self._waiting.append(job)
            self._start()

    def call(self, work: Callable[[EngineCore], T]) -> Future[T]:
        """Do something with the core on its own thread, between two tokens; builds it if that was not done.

        On the worker's own thread it is done at once.

        Raises:
            EngineClosedError: after `close`.
            EngineForkedError: in a child of the process in which the worker was started.
        """
        self._check_process()
        future: Future[T] = Future()
        if self.is_current:
            self._answer(future, work)
            return future
        with self._wake:
            self._check_open()
            self._calls.append((future, work))
            self._start()
        return future

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until every job is answered and everything to be learned from them is; whether that came in time."""
        self._check_process()
        if self.is_current:
            return False
        with self._wake:
            return self._wake.wait_for(lambda: (self._idle and not self._waiting) or self._closed, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop after the token in flight. Jobs that are not done fail with `EngineClosedError`."""
        if self._thread is not None and os.getpid() != self._process:
            self._closed = True  # the thread is the parent's; there is nothing to end here
            return
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None and not self.is_current:
            self._thread.join(timeout_s)

    def _check_process(self) -> None:
        """Before any lock is taken: a child may have inherited it locked."""
        if self._thread is not None and os.getpid() != self._process:
            raise EngineForkedError(
                f"the engine of {self._name} was started before this process was forked (process {self._process}, this"
                f" is {os.getpid()}), and its thread stayed there; make a new engine in the child, or fork before the"
                " first request"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError(f"the engine of {self._name} was closed; make a new one")

    def _start(self) -> None:
        """There is something to do. The caller holds the lock."""
        self._idle = False
        if self._thread is None or not self._thread.is_alive():
            self._process = os.getpid()
            self._thread = threading.Thread(target=self._run, name=f"kvcomm {self._name}", daemon=True)
            self._thread.start()
        self._wake.notify_all()

    def _run(self) -> None:
        """The thread: serves until it is closed. A bug that ends it fails all that waits, and leaves a clean start."""
        try:
            while not self._closed:
                self._serve()
        except BaseException as error:
            logger.critical("the engine of %s failed; the next request starts it anew", self._name, exc_info=True)
            self._fail(
                EngineFailedError(f"the engine of {self._name} failed: {error!r}; the next request starts it anew")
            )
            return
        self._finish()

    def _serve(self) -> None:
        """One round: calls, arrivals, a step for all that run, and a chunk of idle work where that delays nobody."""
        self._sweep()
        while self._calls:
            self._answer(*self._calls.popleft())
        core = self._core
        if core is not None and core.idle.urgent and not (core.active or self._waiting):
            self._work(core, urgent=True)
            return
        came = self._admit()
        core = self._core
        if core is None:
            return
        if core.active:
            core.step()
            self._busy_until = time.perf_counter()
            if core.idle.may_interrupt and _learning():
                core.idle.interrupt()
        elif not (came or self._waiting or self._calls):
            self._work(core)

    def _work(self, core: EngineCore, *, urgent: bool = False) -> None:
        if _learning():  # nothing is learned while Python shuts down
            core.idle.step(urgent=urgent)
        else:
            core.idle.drop()

    def _admit(self) -> bool:
        """Begin waiting jobs while there is room for more, in number and in the next pass; whether any came."""
        came, patience = False, self._patience()
        while not (self._core and self._core.full):
            job = self._next(patience)
            if job is None:
                break
            self._begin(job)
            came, patience = True, 0.0
        return came

    def _patience(self) -> float | None:
        """Seconds to wait for a job: none while others run, a moment before idle work, else for ever."""
        core = self._core
        if core is not None and core.active:
            return 0.0
        if core is not None and len(core.idle):
            return max(0.0, self._busy_until + _GRACE_S - time.perf_counter())
        return None

    def _next(self, patience_s: float | None) -> Job | None:
        with self._wake:
            if patience_s is None and not (self._waiting or self._calls or self._closed):
                self._idle = True
                self._wake.notify_all()
            if patience_s != 0:
                self._wake.wait_for(lambda: self._waiting or self._calls or self._closed, patience_s)
            return self._waiting.popleft() if self._waiting and not self._closed else None

    def _begin(self, job: Job) -> None:
        try:
            if why := job.check():
                raise why
            if self._core is None:
                self._core = self._make()
            self._core.begin(job)
        except BaseException as error:  # whatever it is, it is this job's alone
            job.emit(error)

    def _sweep(self) -> None:
        """Answer waiting jobs that were cancelled or ran out of time."""
        with self._wake:
            stopped = [(job, why) for job in self._waiting if (why := job.check())]
            for job, _ in stopped:
                self._waiting.remove(job)
        for job, why in stopped:
            job.emit(why)

    def _answer(self, future: Future[T], work: Callable[[EngineCore], T]) -> None:
        try:
            if self._core is None:
                self._core = self._make()
            result = work(self._core)
        except BaseException as error:  # the caller's to handle
            with suppress(InvalidStateError):  # cancelled
                future.set_exception(error)
        else:
            with suppress(InvalidStateError):
                future.set_result(result)

    def _finish(self) -> None:
        """The worker was closed: say so to all that is not done, do what was called for, save."""
        core = self._core
        for active in list(core.active) if core else []:
            active.job.emit(EngineClosedError("the engine was closed while this request ran"))
        while self._waiting:
            self._waiting.popleft().emit(EngineClosedError("the engine was closed before this request ran"))
        while self._calls:
            future, work = self._calls.popleft()
            if core:
                self._answer(future, work)
            else:
                with suppress(InvalidStateError):
                    future.set_exception(EngineClosedError("the engine was closed before this was done"))
        if core:
            try:
                core.close()
            except BaseException:
                logger.exception("the engine of %s was not closed cleanly", self._name)
        self._core = None

    def _fail(self, error: EngineFailedError) -> None:
        """Fail all that waits, with the lock held so that nothing is queued behind a thread that ends."""
        with self._wake:
            core, self._core = self._core, None
            jobs = [active.job for active in core.active] if core else []
            jobs += self._waiting
            calls = list(self._calls)
            self._waiting.clear()
            self._calls.clear()
            self._thread, self._idle = None, True
            self._wake.notify_all()
        for job in jobs:
            job.emit(error)
        for future, _ in calls:
            with suppress(InvalidStateError):
                future.set_exception(error)


def _learning() -> bool:
    """Whether there is time to learn: none is while Python shuts down."""
    return threading.main_thread().is_alive()
