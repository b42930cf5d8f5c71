"""Slot: where a span lands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a span lands. Namespaces are no part of it: each has its own pool and correctors.

    Args:
        agent: whose prompt.
        place: which place in that prompt; an opaque key.
        warmed: what stands there has a base that no agent has read: it needs other corrections.
    """

    agent: str
    place: str
    warmed: bool = False

    @property
    def reader(self) -> Slot:
        """The agent as a whole: maps of its places lean on it, those of warmed texts apart from the others."""
        return Slot(self.agent, "", self.warmed)
