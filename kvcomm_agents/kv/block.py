"""KVBlock: the keys and values of a run of tokens, at every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .rope import Rope


@dataclass(frozen=True, slots=True, eq=False)
class KVBlock:
    """KV of consecutive tokens.

    Args:
        keys: `[layers, kv_heads, tokens, key_dim]`.
        values: `[layers, kv_heads, tokens, value_dim]`.
        position: `None` if the keys are un-rotated (free to move); else the position of the first
            token, and the keys are just as the model cached them there.
    """

    keys: Tensor
    values: Tensor
    position: int | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def slice(self, start: int, stop: int) -> KVBlock:
        """Tokens `start:stop`, sharing memory with this block."""
        position = None if self.position is None else self.position + start
        return KVBlock(self.keys[:, :, start:stop], self.values[:, :, start:stop], position)

    def clone(self) -> KVBlock:
        """A copy that keeps no larger tensor alive."""
        contiguous = torch.contiguous_format
        return KVBlock(
            self.keys.clone(memory_format=contiguous),
            self.values.clone(memory_format=contiguous),
            self.position,
        )

    def to(self, device: torch.device) -> KVBlock:
        """This block on another device; itself if it is there already."""
        return KVBlock(self.keys.to(device), self.values.to(device), self.position)

    def unrotated(self, rope: Rope) -> KVBlock:
        """This block with its keys before RoPE, rounded to the same dtype."""
        if self.position is None:
            return self
        return KVBlock(rope.unrotate(self.keys, self.position), self.values)

    def write(self, keys: Tensor, values: Tensor, position: int, rope: Rope | None) -> None:
        """Write to the memory of a cache, the keys as the model would cache them at `position`: rotated once, or not.

        Args:
            keys: `[layers, kv_heads, tokens, key_dim]`.
            values: `[layers, kv_heads, tokens, value_dim]`.
            position: where the first token stands.
            rope: of the model; not needed where nothing moves.

        Raises:
            ValueError: the block has to move and there is no rope to move it by.
        """
        values.copy_(self.values)
        if self.position == position:
            keys.copy_(self.keys)
        elif rope is None:
            raise ValueError(f"keys cached at position {self.position} cannot be moved to {position} on this model")
        elif self.position is None:
            rope.rotate(self.keys, position, out=keys)
        else:
            rope.rotate(rope.unrotate(self.keys, self.position, dtype=torch.float32), position, out=keys)


Capture = Callable[[int, int], KVBlock]
"""Copies the KV of positions `start:stop` out of a context."""
