"""What was done for each request, and who is told of it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from .report import AuditReport, RequestReport

logger = logging.getLogger(__name__)


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
        self._reports: deque[RequestReport] = deque(maxlen=keep)
        self._observers: list[Observer] = []
        self._lock = threading.Lock()

    @property
    def reports(self) -> tuple[RequestReport, ...]:
        """The last ones, oldest first."""
        with self._lock:
            return tuple(self._reports)

    def observe(self, observer: Observer) -> None:
        """Tell this one too, from now on."""
        with self._lock:
            self._observers = [*self._observers, observer]

    def request(self, report: RequestReport) -> None:
        """A request was answered, or failed."""
        with self._lock:
            self._reports.append(report)
        _watched(logger.log, logging.WARNING if report.finish_reason == "error" else logging.INFO, "%s", report)
        for observer in self._observers:
            _watched(observer.on_request, report)

    def audit(self, report: AuditReport) -> None:
        """A request was audited."""
        _watched(logger.info, "%s", report)
        for observer in self._observers:
            _watched(observer.on_audit, report)

    def close(self) -> None:
        """Close the observers."""
        with self._lock:
            observers, self._observers = self._observers, []
        for observer in observers:
            _watched(observer.close)


def _watched(tell: Callable[..., object], *args: object) -> None:
    """Tell somebody. Who watches must not break what is watched, whatever is raised, sys.exit included."""
    try:
        tell(*args)
    except BaseException as error:
        with suppress(BaseException):  # the log itself may be what failed
            logger.error("%s failed on being told: %r", getattr(tell, "__qualname__", tell), error, exc_info=error)
