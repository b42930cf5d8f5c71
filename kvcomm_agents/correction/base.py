"""Corrector: donor KV at a slot -> the KV a dense prefill would have given there.

Keys are un-rotated throughout, so a correction does not know positions. Layer 0 is exact by
construction (its keys and values depend on the token alone, not on its context) and is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..kv.block import KVBlock
from ..kv.slot import Slot


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One anchor's tensors: a span's donor KV, and the KV a dense prefill gave at a slot.

    Args:
        base: un-rotated, float32, bfloat16 or float16.
        true: un-rotated, the same shape.
        embedding: `[dim]` float32, of length 1; `None` if the span has none.
        weight: how much it counts relative to an ordinary example; novel ones count more.
        offset: its first token is this token of the span; correctors that know a token's place in
            its span shift by it or leave the example out.
    """

    base: KVBlock
    true: KVBlock
    embedding: Tensor | None = None
    weight: float = 1.0
    offset: int = 0

    def __post_init__(self) -> None:
        if self.base.position is not None or self.true.position is not None:
            raise ValueError("an example needs un-rotated keys (position None)")
        if self.base.keys.shape != self.true.keys.shape or self.base.values.shape != self.true.values.shape:
            shapes = tuple(self.base.keys.shape), tuple(self.true.keys.shape)
            raise ValueError(f"base and true KV differ in shape: {shapes[0]} and {shapes[1]}")
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} must be positive")

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.base.nbytes + self.true.nbytes + (0 if self.embedding is None else self.embedding.nbytes)


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """What a corrector made of a block.

    Args:
        block: un-rotated, in the dtype of the base.
        confidence: 0 (nothing is known, the base is unchanged) to 1.
        examples: how many stood behind it: the slot's own, or its agent's if the slot has none.
    """

    block: KVBlock
    confidence: float
    examples: int


class Corrector(Protocol):
    """Learns from examples at slots, and corrects what is placed there."""

    name: str

    def learn(self, slot: Slot, example: Example) -> None:
        """Take in one example."""
        ...

    def correct(self, slot: Slot, base: KVBlock, embedding: Tensor | None = None, offset: int = 0) -> Correction:
        """The block as it should be at `slot`.

        Args:
            slot: where the span lands.
            base: un-rotated donor KV.
            embedding: of the span, as in `Example`.
            offset: index of the block's first token within its span.
        """
        ...

    def knows(self, slot: Slot) -> int:
        """Examples behind a slot: its own, or its agent's if it has none."""
        ...

    def forget(self, agent: str | None = None) -> None:
        """Forget an agent, or everything."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of everything learned."""
        ...


def unchanged(base: KVBlock) -> Correction:
    """The answer of a corrector that knows nothing about a slot."""
    return Correction(base, confidence=0.0, examples=0)
