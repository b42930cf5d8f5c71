"""What was done for each request, and who is told of it."""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

from ..log import get_logger
from .report import AuditReport, RequestReport

logger = get_logger(__name__)


class Observer(Protocol):
    """Is told of every request and audit, on the worker's thread: quick, or it delays the next token.

    Of a request in the context (`contextvars`) of whoever submitted it.
    """

    def on_request(self, report: RequestReport) -> None:
        """A request was answered, or failed."""

    def on_audit(self, report: AuditReport) -> None:
        """A request was audited."""

    def close(self) -> None:
        """The engine was closed."""


class Telemetry:
    """Keeps the last reports, logs each as a line, and hands it to the observers. Thread-safe.

    Args:
        keep: reports kept.
    """

    def __init__(self, keep: int = 1000) -> None:
        # No locks: a child that is forked while one is held would find it held for ever. Each step is atomic.
        self._reports: deque[RequestReport] = deque(maxlen=keep)
        self._observers: list[Observer] = []

    @property
    def reports(self) -> tuple[RequestReport, ...]:
        """The last ones, oldest first."""
        return tuple(self._reports.copy())

    def observe(self, observer: Observer) -> None:
        """Tell this one too, from now on."""
        self._observers.append(observer)

    def request(self, report: RequestReport) -> None:
        """A request was answered, or failed."""
        self._reports.append(report)
        logger.log(logging.WARNING if report.finish_reason == "error" else logging.INFO, "%s", report)
        self._tell("on_request", report)

    def audit(self, report: AuditReport) -> None:
        """A request was audited."""
        logger.info("%s", report)
        self._tell("on_audit", report)

    def close(self) -> None:
        """Close the observers, and tell them no more."""
        self._tell("close")
        self._observers.clear()

    def _tell(self, event: str, *args: object) -> None:
        """Tell all observers. Who watches must not break what is watched, whatever is raised, sys.exit included."""
        for observer in list(self._observers):
            try:
                getattr(observer, event)(*args)
            except BaseException as error:
                logger.error("%s of %s failed: %r", event, type(observer).__qualname__, error, exc_info=error)
