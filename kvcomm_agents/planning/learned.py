"""What the namespaces of an engine have learned, in figures."""

from __future__ import annotations

from collections.abc import Iterable

from ..observe.stats import Learned
from .namespace import Namespace


def learned(memories: Iterable[Namespace]) -> Learned:
    """Their sum. May be called from any thread while they learn."""
    found = list(memories)
    coverage = [memory.guard.coverage() for memory in found]
    return Learned(
        len(found),
        sum(len(memory.library) for memory in found),
        sum(memory.library.nbytes for memory in found),
        sum(len(memory.corrections.pool) for memory in found),
        sum(memory.corrections.pool.nbytes for memory in found),
        sum(audited for audited, _ in coverage),
        sum(exceeded for _, exceeded in coverage),
    )
