"""Job: one request on its way through the engine: where its events go, and whether it is still wanted."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import RequestCancelledError, RequestError, RequestTimeoutError
from ..observe.report import FinishReason, RequestReport, finish_reason_of
from ..request import Completion, Request, TextChunk

logger = logging.getLogger(__name__)

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
    """

    request: Request
    sink: Sink
    submitted: float = field(default_factory=time.perf_counter)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    begun: float | None = None
    reporter: Callable[[FinishReason, str], RequestReport] | None = None
    _ended: bool = False
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask the worker to stop; it does within one token. No effect on a finished job."""
        self._cancelled.set()

    def check(self) -> RequestError | None:
        """Why the job should not go on, if it should not."""
        if self._cancelled.is_set():
            return RequestCancelledError("the request was cancelled")
        timeout = self.request.timeout_s
        if timeout is not None and time.perf_counter() - self.submitted > timeout:
            return RequestTimeoutError(f"the request ran out of its {timeout} s")
        return None

    def emit(self, event: Event) -> None:
        """Hand an event to the caller. Nothing comes after the last one.

        A caller that cannot take it is gone, which cancels its job; whatever it raises harms nobody else.
        """
        if self._ended:
            return
        self._ended = not isinstance(event, TextChunk)
        try:
            self.sink(event)
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
            total_s=total_s,
            started_at=time.time() - total_s,
            finish_reason=reason,
            namespace=self.request.namespace,
            rung="none",
            conversation=self.request.conversation,
            model=model,
            error=text,
        )
