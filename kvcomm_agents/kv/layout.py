"""KVLayout: the shape of a model's KV, and how far it can be reused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from rich.filesize import decimal
from torch import Tensor

from ..errors import UnsupportedModelError
from .rope import Rope

Level = Literal["full", "exact", "plain"]
"""How far KV is reused. `full`: placed anywhere, its keys moved. `exact`: where it was computed, as a prefix.
`plain`: not at all; the model is served through a cache of its own."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What the KV of one model looks like.

    Args:
        layers, kv_heads, key_dim, value_dim: a context of `n` tokens has keys
            `[layers, kv_heads, n, key_dim]` and values `[layers, kv_heads, n, value_dim]`. All 0 at level `plain`.
        dtype, device: of the model's KV.
        rope: moves keys; `None` below level `full`.
        level: how far it can be reused.
        reason: why no further, in a few words that follow "because"; empty at level `full`.
        long_after: contexts of more tokens hold other KV of the same tokens; 0 if there is no such length.
    """

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    rope: Rope | None = None
    level: Level = "full"
    reason: str = ""
    long_after: int = 0

    def empty(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Uninitialised keys and values for `tokens` tokens."""
        shape = (self.layers, self.kv_heads, tokens)
        keys = torch.empty(*shape, self.key_dim, dtype=self.dtype, device=self.device)
        return keys, torch.empty(*shape, self.value_dim, dtype=self.dtype, device=self.device)

    def plain(self, reason: str) -> KVLayout:
        """Of the same model, served without reuse."""
        return KVLayout(0, 0, 0, 0, self.dtype, self.device, level="plain", reason=reason)

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
            rest = (
                "It is served without reuse: use reuse='exact' or 'off'."
                if self.level == "plain"
                else "Exact prefix reuse still works: use reuse='exact'."
            )
            raise UnsupportedModelError(
                f"the KV of this model cannot be moved to another position: {self.reason}. {rest}"
            )
        return self.rope

    def __str__(self) -> str:
        if self.level == "plain":
            return f"no KV that could be reused ({self.reason})"
        moved = "can be moved" if self.level == "full" else f"cannot be moved ({self.reason})"
        return f"{decimal(self.token_bytes)} of KV a token, which {moved}"
