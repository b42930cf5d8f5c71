"""Stats: what an engine holds, has learned, has saved, and has done when nobody waited, as plain values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class IdleCost:
    """What one kind of idle work has taken.

    Args:
        done: pieces of work.
        tokens: that went through the model.
        seconds: on the worker's thread.
        shed: pieces that were dropped because too much waited.
    """

    done: int = 0
    tokens: int = 0
    seconds: float = 0.0
    shed: int = 0


@dataclass(frozen=True, slots=True)
class IdleStats:
    """Idle work at one moment.

    Args:
        waiting: pieces that are not done.
        waiting_tokens: that would go through the model for them, at most.
        waiting_bytes: that they keep alive.
        costs: what was done so far, by kind.
    """

    waiting: int = 0
    waiting_tokens: int = 0
    waiting_bytes: int = 0
    costs: dict[str, IdleCost] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Through the model, for all kinds."""
        return sum(cost.tokens for cost in self.costs.values())

    @property
    def seconds(self) -> float:
        """Of all kinds."""
        return sum(cost.seconds for cost in self.costs.values())


@dataclass(frozen=True, slots=True)
class Account:
    """A ledger at one moment.

    Args:
        saved: tokens that an exact prefix cache would have computed and that were placed.
        spent: tokens that idle work computed, by its kind.
    """

    saved: int = 0
    spent: dict[str, int] = field(default_factory=dict)

    @property
    def spent_tokens(self) -> int:
        """Of all kinds."""
        return sum(self.spent.values())

    @property
    def net(self) -> int:
        """Saved less spent; below zero where hidden work has cost more than it brought."""
        return self.saved - self.spent_tokens

    def __add__(self, other: Account) -> Account:
        return Account(self.saved + other.saved, dict(Counter(self.spent) + Counter(other.spent)))

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {tokens}" for kind, tokens in sorted(self.spent.items()))
        return f"{self.saved} tokens saved, {self.spent_tokens} spent{f' ({kinds})' if kinds else ''}, net {self.net}"


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


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One part of an engine's memory: bytes that it holds, and that it may hold."""

    name: str
    used: int
    allowed: int


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """What the prefix cache holds: bytes per tier, nodes and tokens."""

    device_bytes: int = 0
    host_bytes: int = 0
    nodes: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats(PrefixStats):
    """What an engine holds: prefixes, as in `PrefixStats`, and every part of its memory."""

    memory: tuple[MemoryPart, ...] = ()
