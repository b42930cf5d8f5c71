"""Standstill: workers do nothing while their process is forked, so that the child finds nothing half done.

What a thread is in the middle of, and the locks that it holds in torch or elsewhere, stay as they are in a child
for ever, since the thread is not there to finish.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

from ..forks import at_fork

_PATIENCE_S = 5.0  # for all workers together, until the fork goes on without


class Stoppable(Protocol):
    """A worker, as a fork sees it."""

    def stand_still(self, timeout_s: float) -> bool:
        """Begin nothing from now on; whether what was begun ended in time."""
        ...

    def go_on(self) -> None:
        """The fork is over, in the parent."""
        ...

    def begin_anew(self, *, stood_still: bool) -> None:
        """This is the child: the thread and those who wait for it are not here."""
        ...


_workers: weakref.WeakSet[Stoppable] = weakref.WeakSet()
_guard = threading.Lock()
_forking = threading.local()  # which workers the forking thread has stopped


def watch(worker: Stoppable) -> None:
    """Stop a worker at every fork from now on, as long as it lives."""
    with _guard:
        _workers.add(worker)


def _before() -> None:
    with _guard:
        workers = list(_workers)
    until = time.monotonic() + _PATIENCE_S
    _forking.stopped = stopped = []
    for worker in workers:
        stopped.append((worker, worker.stand_still(max(0.0, until - time.monotonic()))))


def _in_parent() -> None:
    for worker, _ in _forking.stopped:
        worker.go_on()
    del _forking.stopped


def _in_child() -> None:
    global _guard
    _guard = threading.Lock()
    for worker, stood_still in _forking.stopped:
        worker.begin_anew(stood_still=stood_still)
    del _forking.stopped


at_fork(before=_before, in_parent=_in_parent, in_child=_in_child)
