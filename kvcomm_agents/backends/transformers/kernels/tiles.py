"""Tiles: the new tokens of some contexts, laid out so that passes over other contexts and lengths look the same.

A tile holds tokens of one context, and a row of a table says where that context's KV lies and how far it
goes. All that changes from pass to pass is in that table and its neighbours, in memory that stays: a
recorded pass reads it, and Triton kernels attend by it. `attention.Ragged` is the plain way to the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....kv.layout import KVLayout
from ..attention import Part
from .launch import DTYPES, kernel, power

_ROWS = 64  # of queries a program works on, at most: those of a tile at the heads of a group
_PROGRAMS = 256  # about as many keep a GPU busy
_SPLITS = 16  # most parts that a context's keys are split into
_FIELDS = 4


@dataclass(frozen=True, slots=True)
class TileShape:
    """How much one layout of a pass has room for.

    Args:
        tokens: in all tiles.
        tile: tokens of a tile; divides `tokens`.
        kept: of them, those whose logits are wanted.
    """

    tokens: int
    tile: int
    kept: int

    @property
    def tiles(self) -> int:
        """How many there are."""
        return self.tokens // self.tile


def longest_tile(group: int) -> int:
    """Most tokens of a tile where `group` heads share their keys."""
    return max(1, min(16, _ROWS // power(group)))


def constants(layout: KVLayout, heads: int, shape: TileShape) -> dict[str, dict[str, Any]]:
    """What each kernel is compiled for, by its name, and how it is launched."""
    group = heads // layout.kv_heads
    programs = shape.tiles * layout.kv_heads
    value = {"VALUE_DIM": layout.value_dim, "VALUE_BLOCK": max(16, power(layout.value_dim)), "TILE": shape.tile}
    write = {"KEY_DIM": layout.key_dim, "KEY_BLOCK": max(16, power(layout.key_dim)), **value}
    rows = {
        "GROUP": group,
        "ROWS": max(16, power(shape.tile * group)),
        "SPLITS": min(_SPLITS, power(max(1, _PROGRAMS // programs))),
    }
    attend = {
        "KEYS": 32 if layout.dtype == torch.float32 else 64,
        "ALIGNED": layout.key_dim % 8 == 0 and layout.value_dim % 8 == 0,
        "num_stages": 2,  # three would not fit into the shared memory of smaller GPUs
        **write,
        **rows,
    }
    return {"write_kernel": write, "attend_kernel": attend, "merge_kernel": {**value, **rows}}


class Tiles:
    """The tokens of one forward pass in tiles of a shape.

    Args:
        layout: of the model's KV.
        heads: of queries.
        shape: how much there is room for.
    """

    def __init__(self, layout: KVLayout, heads: int, shape: TileShape) -> None:
        self.layout, self.heads, self.shape = layout, heads, shape
        sizes = [shape.tokens, shape.tokens, shape.kept, shape.tiles * _FIELDS]
        pinned = layout.device.type == "cuda"
        self._host = torch.zeros(sum(sizes), dtype=torch.int64, pin_memory=pinned)
        self._there = self._host.to(layout.device)
        self.ids, self._positions, self.kept, self._table = torch.split(self._there, sizes)
        self._constants = constants(layout, heads, shape)
        rows = self._constants["attend_kernel"]
        partial = shape.tiles, layout.kv_heads, rows["SPLITS"], rows["ROWS"]
        self._sums = torch.empty(*partial, layout.value_dim, device=layout.device)
        self._tops, self._totals = (torch.empty(partial, device=layout.device) for _ in range(2))

    @property
    def positions(self) -> Tensor:
        """Of every token, int64 `[tokens]`; 0 where there is none."""
        return self._positions.clamp(min=0)

    def fill(self, parts: Sequence[Part]) -> None:
        """Lay out parts; they must fit. Their caches stay where they are until the pass is over."""
        shape = self.shape
        ids, positions, kept, table = [0] * shape.tokens, [-1] * shape.tokens, list[int](), list[int]()
        for part in parts:
            at = len(table) // _FIELDS * shape.tile
            count = len(part.tokens)
            ids[at : at + count] = part.tokens
            if isinstance(part.targets, slice):
                positions[at : at + count] = range(part.targets.start, part.targets.stop)
            else:
                positions[at : at + count] = part.targets.tolist()
            kept += range(at + count - part.keep, at + count)
            cache = part.cache
            for start in range(0, count, shape.tile):
                end = positions[at + min(start + shape.tile, count) - 1] + 1
                table += [cache.keys.data_ptr(), cache.values.data_ptr(), cache.capacity, end]
        kept += [0] * (shape.kept - len(kept))
        table += [0] * (shape.tiles * _FIELDS - len(table))
        self._host.copy_(torch.tensor([*ids, *positions, *kept, *table]))
        self._there.copy_(self._host, non_blocking=True)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """As `Ragged.attend`, by what was filled in last. `query`, `key` and `value` have adjacent channels."""
        layout, shape = self.layout, self.shape
        query, key, value = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, key, value))
        result = query.new_empty(1, shape.tokens, self.heads, layout.value_dim)
        self._launch(
            "write_kernel",
            (shape.tokens, layout.kv_heads),
            self._table,
            self._positions,
            key,
            value,
            layer,
            layout.kv_heads,
            *key.stride()[1:3],
            *value.stride()[1:3],
        )
        self._launch(
            "attend_kernel",
            self._tops.shape[:3],
            self._table,
            self._positions,
            query,
            self._sums,
            self._tops,
            self._totals,
            layer,
            layout.key_dim**-0.5 if scale is None else scale,
            *query.stride()[1:3],
        )
        self._launch("merge_kernel", self._tops.shape[:2], self._sums, self._tops, self._totals, result)
        return result

    def _launch(self, name: str, grid: Sequence[int], *arguments: Any) -> None:
        kernel("tiles_kernel", name)[tuple(grid)](*arguments, **self._constants[name])


def fits(layout: KVLayout, heads: int) -> bool:
    """Whether a model's attention can go by tiles: its dtype and its groups of heads."""
    group, rest = divmod(heads, layout.kv_heads)
    return layout.dtype in DTYPES and group >= 1 and rest == 0 and power(group) <= _ROWS
