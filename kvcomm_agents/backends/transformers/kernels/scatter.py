"""Scatter: all placed runs of a plan, at all layers, rotated and written to a cache in one launch.

A Triton kernel for CUDA. The plain path is `KVBlock.write`, block by block, which the tests hold it to.
SpanCorrector are computed before a request comes, so blocks arrive corrected: here they are gathered from
wherever they lie, keys are rotated to where they go in float32 and rounded once, and both are written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....kv.rope import Rope
from ....plan import Placed
from .launch import DTYPES, kernel, power

_TILE = 16  # tokens a program moves
_MOVED, _UNROTATED, _AS_CACHED = 2, 1, 0


def scatter(runs: Sequence[Placed], keys: Tensor, values: Tensor, rope: Rope | None) -> bool:
    """Write placed runs to a cache.

    Args:
        runs: on the cache's device, in its dtype.
        keys: of the cache, `[layers, kv_heads, capacity, key_dim]`, contiguous.
        values: of the cache, `[layers, kv_heads, capacity, value_dim]`, contiguous.
        rope: of the model; not needed where nothing moves.

    Returns:
        Whether it did; if not (another dtype or device, channels that are not adjacent, nothing to move
        keys by), nothing is written and the plain path serves.
    """
    if not runs or not all(_fits(run, keys, values, rope) for run in runs):
        return False
    rows = [row for run in runs for row in _tiles(run)]
    table = torch.tensor(rows, dtype=torch.int64).to(keys.device)
    end = max(max(run.stop, (run.block.position or 0) + run.block.tokens) for run in runs)
    if rope is None:
        cos = sin = torch.empty(1, 1, device=keys.device)
        pairs, interleaved = 0, False
    else:
        cos, sin = rope.angles(slice(0, end))
        pairs, interleaved = cos.shape[1], rope.pairing == "interleaved"
    layers, heads, capacity, key_dim = keys.shape
    kernel("scatter_kernel", "scatter_kernel")[(len(table), layers * heads)](
        table,
        keys,
        values,
        cos,
        sin,
        heads,
        capacity,
        PAIRS=pairs,
        KEY_DIM=key_dim,
        VALUE_DIM=values.shape[-1],
        INTERLEAVED=interleaved,
        ROTARY_BLOCK=power(pairs),
        REST_BLOCK=power(key_dim - 2 * pairs),
        KEY_BLOCK=power(key_dim),
        VALUE_BLOCK=power(values.shape[-1]),
        TILE=_TILE,
        ALIGNED=all(one % 16 == 0 for row in rows for one in row[:2])
        and all(one % 8 == 0 for row in rows for one in row[2:8]),
    )
    return True


def _fits(run: Placed, keys: Tensor, values: Tensor, rope: Rope | None) -> bool:
    block = run.block
    return (
        (rope is not None or block.position == run.start)
        and keys.dtype in DTYPES
        and all(
            one.dtype == into.dtype and one.device == into.device and one.stride(-1) == 1 and into.is_contiguous()
            for one, into in ((block.keys, keys), (block.values, values))
        )
    )


def _tiles(run: Placed) -> list[list[int]]:
    """A row of the kernel's table for every tile of a run: where it lies, how it is laid out, where it goes."""
    block, size = run.block, run.block.keys.element_size()
    mode = _UNROTATED if block.position is None else _AS_CACHED if block.position == run.start else _MOVED
    layout = [*block.keys.stride()[:3], *block.values.stride()[:3]]
    return [
        [
            block.keys.data_ptr() + at * block.keys.stride(2) * size,
            block.values.data_ptr() + at * block.values.stride(2) * size,
            *layout,
            run.start + at,
            (block.position or 0) + at,
            min(_TILE, block.tokens - at),
            mode,
        ]
        for at in range(0, block.tokens, _TILE)
    ]
