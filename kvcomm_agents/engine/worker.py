"""Worker: the one thread that owns a model. Requests wait in its queue and are served together."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ..backends.transformers.sequence import RunningSequence
from ..errors import EngineClosedError
from .core import EngineCore
from .job import Job

logger = logging.getLogger(__name__)

_GRACE_S = 0.05  # the next call of a chain comes within milliseconds: do not be found busy
_MAX_BACKLOG = 32  # pieces of learning put off; beyond that they delay the next request, or memory would grow


T = TypeVar("T")


class Worker:
    """Runs jobs on a daemon thread, one forward pass over all of them at a time.

    Args:
        make: builds the inference, on the worker's thread, when the first job needs it. If it
            fails, the jobs waiting fail with its error and the next job tries again.
        max_concurrent: jobs served together.
        name: of the thread.
    """

    def __init__(self, make: Callable[[], EngineCore], max_concurrent: int, name: str) -> None:
        self._make, self._max, self._name = make, max_concurrent, name
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._inference: EngineCore | None = None
        self._idle = True
        self._busy_until = 0.0  # when the last request was answered
        self._calls: deque[tuple[Future[Any], Callable[[EngineCore], Any]]] = deque()

    @property
    def inference(self) -> EngineCore | None:
        """What was built; `None` before the first job."""
        return self._inference

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            EngineClosedError: after `close`.
        """
        with self._wake:
            if self._closed:
                raise EngineClosedError(f"the engine of {self._name} was closed; make a new one")
            self._waiting.append(job)
            self._start()

    def _start(self) -> None:
        """There is something to do. The caller holds the lock."""
        self._idle = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"kvcomm {self._name}", daemon=True)
            self._thread.start()
        self._wake.notify_all()

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until every job is answered and everything to be learned from them is; whether that came in time."""
        with self._wake:
            return self._wake.wait_for(lambda: (self._idle and not self._waiting) or self._closed, timeout_s)

    def call(self, work: Callable[[EngineCore], T]) -> Future[T]:
        """Do something with the inference on its own thread, between two tokens; builds it if that was not done.

        Raises:
            EngineClosedError: after `close`.
        """
        future: Future[T] = Future()
        with self._wake:
            if self._closed:
                raise EngineClosedError(f"the engine of {self._name} was closed; make a new one")
            self._calls.append((future, work))
            self._start()
        return future

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop after the token in flight. Jobs that are not done fail with `EngineClosedError`."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        running: list[RunningSequence] = []
        while not self._closed:
            self._sweep()
            while self._calls:
                self._answer(*self._calls.popleft())
            self._tidy(urgent=True, most=1 if running else None)
            came = self._admit(running)
            if self._backlog() > _MAX_BACKLOG // 2 or not (came or running):
                self._tidy(urgent=False, most=1)
            self._advance(running)
        for one in running:
            one.job.emit(EngineClosedError("the engine was closed while this request ran"))
        for job in self._waiting:
            job.emit(EngineClosedError("the engine was closed before this request ran"))
        for future, work in self._calls:
            if self._inference:
                self._answer(future, work)
            else:
                future.set_exception(EngineClosedError("the engine was closed before this was done"))
        if self._inference:
            self._inference.close()
        self._inference = None

    def _answer(self, future: Future[T], work: Callable[[EngineCore], T]) -> None:
        try:
            if self._inference is None:
                self._inference = self._make()
            result = work(self._inference)
        except Exception as error:  # the caller's to handle
            future.set_exception(error)
        else:
            future.set_result(result)

    def _sweep(self) -> None:
        """Answer waiting jobs that were cancelled or ran out of time."""
        with self._wake:
            stopped = [(job, why) for job in self._waiting if (why := job.check())]
            for job, _ in stopped:
                self._waiting.remove(job)
        for job, why in stopped:
            job.emit(why)

    def _admit(self, running: list[RunningSequence]) -> bool:
        """Begin waiting jobs while there is room for more, in number and in the next pass; whether any came."""
        came, patience = False, self._patience(running)
        while len(running) < self._max and not (self._inference and self._inference.full(running)):
            job = self._next(patience)
            if job is None:
                break
            self._begin(job, running)
            came, patience = True, 0.0
        return came

    def _patience(self, running: list[RunningSequence]) -> float | None:
        """Seconds to wait for a job: none while others run, a moment before idle work, else for ever."""
        if running:
            return 0.0
        learning = self._idle_work() and threading.main_thread().is_alive()
        return max(0.0, self._busy_until + _GRACE_S - time.perf_counter()) if learning else None

    def _next(self, patience_s: float | None) -> Job | None:
        with self._wake:
            if patience_s is None and not (self._waiting or self._calls or self._closed):
                self._idle = True
                self._wake.notify_all()
            if patience_s != 0:
                self._wake.wait_for(lambda: self._waiting or self._calls or self._closed, patience_s)
            return self._waiting.popleft() if self._waiting and not self._closed else None

    def _backlog(self) -> int:
        return len(self._inference.reuse.backlog) if self._inference else 0

    def _idle_work(self) -> bool:
        return self._inference is not None and bool(self._inference.reuse.backlog or len(self._inference.warmup))

    def _tidy(self, *, urgent: bool, most: int | None) -> None:
        """Work that no request waits for: up to so many pieces of what is urgent, or of the rest, a warm-up's last."""
        if self._inference is None or not threading.main_thread().is_alive():  # no learning while Python shuts down
            return
        reuse = self._inference.reuse
        work = reuse.urgent if urgent else reuse.backlog
        if not urgent and not work:
            self._inference.warmup.step()
        for _ in range(len(work) if most is None else min(most, len(work))):
            try:
                work.popleft()()
            except Exception:  # what was not learned is only slower, never wrong
                if threading.main_thread().is_alive():
                    logger.exception("learning from a request failed")

    def _begin(self, job: Job, running: list[RunningSequence]) -> None:
        try:
            if why := job.check():
                raise why
            while self._backlog() > _MAX_BACKLOG:
                self._tidy(urgent=False, most=1)
            if self._inference is None:
                self._inference = self._make()
            running.append(self._inference.begin(job))
        except Exception as error:  # whatever it is, it is this job's alone
            job.emit(error)

    def _advance(self, running: list[RunningSequence]) -> None:
        """One forward pass for all, and the end for those that are done, not wanted any more, or failed."""
        inference = self._inference
        if inference is None:
            return
        for one in list(running):
            if why := one.job.check():
                running.remove(one)
                self._end(one, why, inference.release)
        for one, error in inference.step(running):
            running.remove(one)
            logger.error("a request failed", exc_info=error)
            one.job.emit(error)
        for one in [one for one in running if one.finished]:
            running.remove(one)
            self._end(one, None, inference.finish)
            self._busy_until = time.perf_counter()

    def _end(self, one: RunningSequence, why: Exception | None, work: Callable[[RunningSequence], None]) -> None:
        """Tell why a request stops, if it was not done, and do the last work for it."""
        if why is not None:
            one.job.emit(why)
        try:
            work(one)
        except Exception as error:
            logger.exception("a request failed")
            one.job.emit(error)
