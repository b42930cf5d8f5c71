"""Learned: what the memories of an engine hold, in figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .namespace import Namespace


@dataclass(frozen=True, slots=True)
class Learned:
    """Over all namespaces in use.

    Args:
        namespaces: how many.
        spans, span_bytes: texts known, and their donors' KV.
        anchors, anchor_bytes: examples that corrections are learned from, and their KV.
        audited: audited requests that had been let through, the last 1000 of a namespace at most.
        exceeded: how many of these diverged by more than the bound.
    """

    namespaces: int = 0
    spans: int = 0
    span_bytes: int = 0
    anchors: int = 0
    anchor_bytes: int = 0
    audited: int = 0
    exceeded: int = 0


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
