"""A transformers cache over preallocated memory that accepts scattered writes.

One buffer for all layers, so that a stored block is placed by one copy; each layer sees its own
slice. `update` writes the new keys and values at the positions announced by `expect` and returns
everything up to the context's end, so attention sees placed and computed tokens alike.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ...errors import UnsupportedModelError
from ...kv.block import KVBlock
from ...kv.layout import KVLayout
from ...kv.rope import Rope
from .plain import PlainState


class PlanCache(Cache):
    """The KV of one running context.

    Args:
        layout: shape, dtype and device of the model's KV.
        capacity: tokens to make room for; `reserve` makes more.
    """

    def __init__(self, layout: KVLayout, capacity: int) -> None:
        self.layout = layout
        self.keys, self.values = layout.empty(capacity)
        self.length = 0
        """Tokens whose KV is in place, counted from position 0; during `update`, those before the computed suffix."""
        self.end = 0
        self.long = False
        """Whether its keys are rotated with the long factors of longrope."""
        self.plain: PlainState | None = None
        """What holds the context where our memory cannot (see `plain`)."""
        self.lasting: int | None = None
        """Tokens, from position 0, whose KV any context of the same text would hold; `None` if all of it."""
        self.targets: slice | Tensor = slice(0, 0)
        super().__init__(layers=[_PlanLayer(self, index) for index in range(layout.layers)])

    @property
    def capacity(self) -> int:
        """Tokens there is room for."""
        return self.keys.shape[2]

    @property
    def reached(self) -> int:
        """Tokens, counted from position 0, whose KV is of use to other contexts."""
        if self.plain is not None:
            return 0
        return self.length if self.lasting is None else min(self.length, self.lasting)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes

    def clear(self) -> None:
        """Forget what it holds; its memory stays."""
        self.length = 0
        if self.plain is not None:
            self.plain = PlainState()

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` in all, keeping what is there."""
        if tokens <= self.capacity:
            return
        keys, values = self.layout.empty(max(tokens, 2 * self.capacity))
        keys[:, :, : self.length] = self.keys[:, :, : self.length]
        values[:, :, : self.length] = self.values[:, :, : self.length]
        self.keys, self.values = keys, values

    def place(self, block: KVBlock, position: int, rope: Rope | None) -> None:
        """Write a block's KV at `position`, its keys rotated for it."""
        where = slice(position, position + block.tokens)
        block.write(self.keys[:, :, where], self.values[:, :, where], position, rope)

    def expect(self, targets: slice | Tensor, end: int) -> None:
        """Announce the next forward pass: its tokens go to `targets` (a slice, or positions `[tokens]`) below `end`."""
        self.targets, self.end = targets, end
        self.length = targets.start if isinstance(targets, slice) else end - targets.shape[0]

    def capture(self, start: int, stop: int) -> KVBlock:
        """A copy of positions `start:stop`, keys as cached.

        Raises:
            UnsupportedModelError: the model's contexts are not KV per token.
        """
        if self.plain is not None:
            raise UnsupportedModelError(f"KV of this model cannot be copied: {self.layout.reason}")
        return KVBlock(self.keys[:, :, start:stop], self.values[:, :, start:stop], start).clone()


class _PlanLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # its __init_subclass__
    is_sliding = False

    def __init__(self, cache: PlanCache, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self.index = cache, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the memory is there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scatter `[1, kv_heads, new, dim]` to the announced positions; return `[1, kv_heads, end, dim]`."""
        cache = self.cache
        keys, values = cache.keys[self.index], cache.values[self.index]
        if isinstance(cache.targets, slice):
            keys[:, cache.targets] = key_states[0]
            values[:, cache.targets] = value_states[0]
        else:
            keys.index_copy_(1, cache.targets, key_states[0])
            values.index_copy_(1, cache.targets, value_states[0])
        return keys[None, :, : cache.end], values[None, :, : cache.end]

    def get_seq_length(self) -> int:
        """Tokens before the ones being computed."""
        return self.cache.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what `update` will return."""
        return self.cache.end, 0

    def get_max_length(self) -> int:
        """No limit: the cache grows."""
        return -1
