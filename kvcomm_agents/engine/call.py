"""Call: something to be done on the engine's thread, and the future in which its caller waits for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import EngineForkedError
from ..log import get_logger

if TYPE_CHECKING:
    from .core import EngineCore

logger = get_logger(__name__)

T = TypeVar("T")


class EngineFuture(Future[T]):
    """A future whose callbacks harm nobody, and that does not wait where its engine's thread is not.

    Callbacks are called on the engine's thread; what they raise is logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """As `Future.add_done_callback`; whatever `fn` raises, `sys.exit` included, is logged."""

        def told(done: Future[T]) -> None:
            try:
                fn(done)
            except BaseException as error:
                logger.error("a callback of a future failed: %r", error, exc_info=error)

        super().add_done_callback(told)

    def result(self, timeout: float | None = None) -> T:
        """As `Future.result`.

        Raises:
            EngineForkedError: it is not done, and this is a child of the process in which it would be.
        """
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `Future.exception`.

        Raises:
            EngineForkedError: it is not done, and this is a child of the process in which it would be.
        """
        self._check_process()
        return super().exception(timeout)

    def fulfil(self, result: T) -> None:
        """Set the result, unless it was cancelled or has ended otherwise."""
        with suppress(InvalidStateError):
            self.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Set the exception, unless it was cancelled or has ended otherwise."""
        with suppress(InvalidStateError):
            self.set_exception(error)

    def _check_process(self) -> None:
        if os.getpid() != self._process and not self.done():
            raise EngineForkedError(
                f"this was asked of an engine in process {self._process}, which was then forked; ask it again in"
                f" this one, {os.getpid()}"
            )


@dataclass(eq=False, slots=True)
class Call(Generic[T]):
    """Something to be done with the core.

    Args:
        work: what.
        future: of what it gives.
    """

    work: Callable[[EngineCore], T]
    future: EngineFuture[T] = field(default_factory=EngineFuture)

    def run(self, make: Callable[[], EngineCore]) -> None:
        """Do it, with the core that `make` gives; whatever is raised is the caller's to handle."""
        try:
            result = self.work(make())
        except BaseException as error:
            self.future.fail(error)
        else:
            self.future.fulfil(result)
