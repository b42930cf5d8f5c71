"""Job: one request on its way through the engine: where its events go, and whether it is still wanted."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import EngineForkedError, RequestCancelledError, RequestError, RequestTimeoutError
from ..log import get_logger
from ..observe.report import FinishReason, RequestReport, finish_reason_of
from ..request import Completion, Request, TextChunk

logger = get_logger(__name__)

Event = TextChunk | Completion | BaseException
Sink = Callable[[Event], None]


@dataclass(eq=False, slots=True)
class Job:
    """A submitted request.

    Args:
        request: what was asked.
        sink: called on the worker's thread with each event; the last is a `Completion` or an exception.
        submitted: `time.perf_counter()` at submission.
        context: the caller's, in which observers are told of the request: a trace goes on in it.
        begun: `time.perf_counter()` when the worker took it; `None` while it is in the queue.
        reporter: makes the report of a request that is being served, from its end and an error; `None` before.
        clock: seconds of idle work that the worker has done so far.
    """

    request: Request
    sink: Sink
    submitted: float = field(default_factory=time.perf_counter)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    begun: float | None = None
    reporter: Callable[[FinishReason, str], RequestReport] | None = None
    clock: Callable[[], float] = lambda: 0.0
    _deadline: float | None = field(init=False)
    _idle_before: float = field(init=False)
    _process: int = field(default_factory=os.getpid)
    _ended: bool = False
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        timeout = self.request.timeout_s
        self._deadline = None if timeout is None else self.submitted + timeout
        self._idle_before = self.clock()

    @property
    def idle_s(self) -> float:
        """Seconds since its submission in which the worker did idle work."""
        return max(0.0, self.clock() - self._idle_before)

    def cancel(self) -> None:
        """Ask the worker to stop; it does within one token. No effect on a finished job."""
        self._cancelled.set()

    def check(self) -> RequestError | None:
        """Why the job should not go on, if it should not."""
        if self._cancelled.is_set():
            return RequestCancelledError("the request was cancelled")
        if self._deadline is not None and time.perf_counter() > self._deadline:
            return RequestTimeoutError(f"the request ran out of its {self.request.timeout_s} s")
        return None

    def check_process(self) -> None:
        """Refuse to wait for events where none can come.

        Raises:
            EngineForkedError: this is a child of the process in which it was submitted.
        """
        if os.getpid() != self._process:
            raise EngineForkedError(
                f"this request was submitted in process {self._process}, which was then forked; submit it again in"
                f" this one, {os.getpid()}"
            )

    def emit(self, event: Event) -> None:
        """Hand an event to the caller. Nothing comes after the last one.

        A caller that cannot take it is gone, which cancels its job; whatever it raises harms nobody else.
        """
        if self._ended:
            return
        self._ended = not isinstance(event, TextChunk)
        try:
            self.sink(_plain(event))
        except BaseException as error:  # e.g. its event loop was closed, or it called sys.exit
            logger.debug("a caller could not take an event: %r", error)
            self.cancel()
        finally:
            if self._ended:
                self.reporter = None  # it holds the context's KV

    def failed(self, error: BaseException, model: str) -> RequestReport:
        """What is reported of it if it ends with this error, on the model of that name."""
        reason, text = finish_reason_of(error), f"{type(error).__name__}: {error}"
        if self.reporter is not None:
            return self.reporter(reason, text)
        now = time.perf_counter()
        total_s = now - self.submitted
        return RequestReport(
            agent=self.request.agent or "",
            prompt_tokens=0,
            computed_tokens=0,
            queue_s=(self.begun or now) - self.submitted,
            idle_s=self.idle_s,
            total_s=total_s,
            started_at=time.time() - total_s,
            finish_reason=reason,
            namespace=self.request.namespace,
            rung="none",
            conversation=self.request.conversation,
            model=model,
            error=text,
        )


def _plain(event: Event) -> Event:
    """What its caller is given: `SystemExit` and its like would end the caller's thread, or cancel its task."""
    if not isinstance(event, BaseException) or isinstance(event, Exception):
        return event
    error = RequestError(f"something that the request ran raised {event!r}")
    error.__cause__ = event
    return error
