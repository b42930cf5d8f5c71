"""Job: one request on its way through the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import RequestCancelledError, RequestError, RequestTimeoutError
from .request import Completion, Request, TextChunk
from .telemetry import RequestReport, finish_reason_of

Event = TextChunk | Completion | BaseException
Sink = Callable[[Event], None]


@dataclass(eq=False, slots=True)
class Job:
    """A submitted request: where its events go, and whether it is still wanted.

    Args:
        request: what was asked.
        sink: called on the worker's thread with each event; the last is a `Completion` or an exception.
        submitted: `time.perf_counter()` at submission.
    """

    request: Request
    sink: Sink
    submitted: float = field(default_factory=time.perf_counter)
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
        """Hand an event to the caller; a caller that is gone cancels its job."""
        try:
            self.sink(event)
        except Exception:  # e.g. its event loop was closed; other requests must go on
            self.cancel()

    def failed(self, error: BaseException, model: str) -> RequestReport:
        """What is reported of it if it ends with this error, on the model of that name."""
        total_s = time.perf_counter() - self.submitted
        return RequestReport(
            agent=self.request.agent or "",
            prompt_tokens=0,
            computed_tokens=0,
            total_s=total_s,
            started_at=time.time() - total_s,
            finish_reason=finish_reason_of(error),
            namespace=self.request.namespace,
            rung="none",
            conversation=self.request.conversation,
            model=model,
            error=f"{type(error).__name__}: {error}",
        )
