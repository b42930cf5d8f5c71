"""Watchable: what exporters ask of an engine, so that they need to know none."""

from __future__ import annotations

from typing import Protocol

from .stats import Account, EngineStats, IdleStats, Learned
from .telemetry import Observer


class Watchable(Protocol):
    """What exporters ask of an engine."""

    @property
    def name(self) -> str:
        """Of its model."""
        ...

    @property
    def max_divergence(self) -> float:
        """The bound that the guard keeps: mean KL per token, nats."""
        ...

    @property
    def stats(self) -> EngineStats:
        """What it holds."""
        ...

    @property
    def learned(self) -> Learned:
        """What it has learned."""
        ...

    @property
    def idle(self) -> IdleStats:
        """What it has done when nobody waited."""
        ...

    @property
    def waiting(self) -> int:
        """Requests in its queue."""
        ...

    def ledger(self) -> Account:
        """What reuse has saved it and hidden work has cost it."""
        ...

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every request and audit from now on."""
        ...
