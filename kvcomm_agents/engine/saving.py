"""Saving: what namespaces have learned, on its way to disk. On any thread, so that no request waits for a disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..correction.saved.anchor_file import Snapshot
from ..log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Unsaved:
    """What one namespace has learned, to be written.

    Args:
        words: what it is, for the log.
        folder: where it goes.
        snapshot: the state to be written, or why there is none.
        wanted: whether the namespace is still there; one that was forgotten meanwhile is not written.
    """

    words: str
    folder: Path
    snapshot: Snapshot | BaseException
    wanted: Callable[[], bool] = lambda: True

    def write(self) -> None:
        """Write it.

        Raises:
            SavedMemoryError: it could not be written; what was saved before is still whole.
        """
        if isinstance(self.snapshot, BaseException):
            raise self.snapshot
        started = time.perf_counter()
        if self.wanted():
            self.snapshot.write(self.folder)
            logger.info("saved %s to %s in %.2f s", self.words, self.folder, time.perf_counter() - started)


def write_all(unsaved: Sequence[Unsaved]) -> None:
    """Write all of them. One that cannot be written keeps no other from it.

    Raises:
        SavedMemoryError: of the first that could not be written.
    """
    failed = list[BaseException]()
    for each in unsaved:
        try:
            each.write()
        except BaseException as error:
            logger.error("%s could not be saved: %s", each.words, error)
            failed.append(error)
    if failed:
        raise failed[0]
