"""KVLayout: the shape of a model's KV, and whether its keys can be moved.

Read from the config where the config says it, then proved by two small forward passes: keys cached
at one position, rotated to another, must be the keys the model caches there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from .rope import Rope


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What the KV of one model looks like.

    Args:
        layers, kv_heads, key_dim, value_dim: a context of `n` tokens has keys
            `[layers, kv_heads, n, key_dim]` and values `[layers, kv_heads, n, value_dim]`.
        dtype, device: of the model's KV.
        rope: moves keys; `None` if they cannot be moved.
        immovable: why not, in a few words; empty if they can.
        long_after: contexts of more tokens hold other KV of the same tokens; 0 if there is no such length.
    """

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    rope: Rope | None = None
    immovable: str = ""
    long_after: int = 0

    def empty(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Uninitialised keys and values for `tokens` tokens."""
        shape = (self.layers, self.kv_heads, tokens)
        keys = torch.empty(*shape, self.key_dim, dtype=self.dtype, device=self.device)
        return keys, torch.empty(*shape, self.value_dim, dtype=self.dtype, device=self.device)

    def variant(self, tokens: int) -> int:
        """Which KV a context of so many tokens holds: only contexts of one variant can take it from each other."""
        return int(0 < self.long_after < tokens)

    @property
    def token_bytes(self) -> int:
        """Bytes of KV per token."""
        return self.layers * self.kv_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize

    def require_movable(self) -> Rope:
        """The rope.

        Raises:
            UnsupportedModelError: the keys cannot be moved; names the reason.
        """
        if self.rope is None:
            raise UnsupportedModelError(
                f"the KV of this model cannot be moved to another position: {self.immovable}."
                " Exact prefix reuse still works: use reuse='exact'."
            )
        return self.rope
