"""Slot: where a span lands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a span lands. Namespaces are no part of it: each has its own pool and correctors.

    Args:
        agent: whose prompt.
        place: which place in that prompt; an opaque key.
    """

    agent: str
    place: str
