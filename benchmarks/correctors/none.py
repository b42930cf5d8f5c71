"""`none`: the base is only moved."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from kvcomm_agents.correction.base import Correction, Example, unchanged
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot


class NoCorrector:
    """Learns nothing and changes nothing."""

    name = "none"
    nbytes = 0

    def __init__(self, pool: Iterable[tuple[Slot, Example]] = ()) -> None:
        pass

    def learn(self, slot: Slot, example: Example) -> None:
        """Nothing to learn."""

    def correct(self, slot: Slot, base: KVBlock, embedding: Tensor | None = None, offset: int = 0) -> Correction:
        """The base unchanged."""
        return unchanged(base)

    def knows(self, slot: Slot) -> int:
        """Nothing."""
        return 0

    def forget(self, agent: str | None = None) -> None:
        """Nothing to forget."""
