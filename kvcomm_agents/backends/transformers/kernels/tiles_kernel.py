"""The Triton kernels behind `tiles`. Imported only where Triton is.

Sizes that change from pass to pass are read from memory, so that a recorded launch serves all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["layer"])
def write_kernel(
    table: tl.tensor,  # int64 [tiles, 4]: addresses of keys and values, capacity, end
    positions: tl.tensor,  # int64 [tokens], -1 where there is none
    key: tl.tensor,  # [heads, tokens, KEY_DIM] by the strides below
    value: tl.tensor,  # [heads, tokens, VALUE_DIM] by the strides below
    layer: tl.tensor,
    heads: tl.tensor,
    key_head: tl.tensor,
    key_token: tl.tensor,
    value_head: tl.tensor,
    value_token: tl.tensor,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """The new key and value of a token, at one head, to its cache."""
    token, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + token)
    if position >= 0:
        row = table + (token // TILE) * 4
        kind = key.dtype.element_ty
        at = (layer.to(tl.int64) * heads + head) * tl.load(row + 2) + position
        channel = tl.arange(0, KEY_BLOCK)
        inside = channel < KEY_DIM
        into = tl.load(row).to(tl.pointer_type(kind)) + at * KEY_DIM
        tl.store(into + channel, tl.load(key + head * key_head + token * key_token + channel, mask=inside), mask=inside)
        channel_v = tl.arange(0, VALUE_BLOCK)
        inside_v = channel_v < VALUE_DIM
        into = tl.load(row + 1).to(tl.pointer_type(kind)) + at * VALUE_DIM
        written = tl.load(value + head * value_head + token * value_token + channel_v, mask=inside_v)
        tl.store(into + channel_v, written, mask=inside_v)


@triton.jit(do_not_specialize=["layer"])
def attend_kernel(
    table: tl.tensor,  # int64 [tiles, 4]: addresses of keys and values, capacity, end
    positions: tl.tensor,  # int64 [tokens]
    query: tl.tensor,  # [heads, tokens, KEY_DIM] by the strides below
    sums: tl.tensor,  # float32 [tiles, kv_heads, SPLITS, ROWS, VALUE_DIM]
    tops: tl.tensor,  # float32 [tiles, kv_heads, SPLITS, ROWS]
    totals: tl.tensor,  # float32 [tiles, kv_heads, SPLITS, ROWS]
    layer: tl.tensor,
    scale: tl.tensor,
    query_head: tl.tensor,
    query_token: tl.tensor,
    GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    KEYS: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    """A tile's tokens, at the heads of one group, over one part of the keys: sums of values, not yet divided."""
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    row = table + tile * 4
    end = tl.load(row + 3)
    kind = query.dtype.element_ty
    keys = tl.load(row).to(tl.pointer_type(kind))
    values = tl.load(row + 1).to(tl.pointer_type(kind))
    if ALIGNED:
        keys, values = tl.multiple_of(keys, 16), tl.multiple_of(values, 16)
    base = (layer.to(tl.int64) * heads + head) * tl.load(row + 2)
    keys += base * KEY_DIM
    values += base * VALUE_DIM

    rows = tl.arange(0, ROWS)
    held = rows < TILE * GROUP
    token = tile * TILE + rows // GROUP
    position = tl.load(positions + token, mask=held, other=-1)
    channel, channel_v = tl.arange(0, KEY_BLOCK), tl.arange(0, VALUE_BLOCK)
    asked = query + ((head * GROUP + rows % GROUP) * query_head + token * query_token)[:, None] + channel[None]
    queries = tl.load(asked, mask=held[:, None] & (channel < KEY_DIM)[None], other=0.0)

    each = tl.cdiv(tl.cdiv(end, SPLITS), KEYS) * KEYS
    low = split * each
    high = tl.minimum(low + each, end)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, VALUE_BLOCK], tl.float32)
    for start in range(low, high, KEYS):
        at = start + tl.arange(0, KEYS)
        there = at < high
        k = tl.load(
            keys + at[:, None] * KEY_DIM + channel[None], mask=there[:, None] & (channel < KEY_DIM)[None], other=0.0
        )
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(there[None] & (at[None] <= position[:, None]), scores, float("-inf"))
        best = tl.maximum(top, tl.max(scores, 1))
        finite = tl.where(best == float("-inf"), 0.0, best)  # nothing seen yet
        weights = tl.exp(scores - finite[:, None])
        fade = tl.exp(top - finite)
        v = tl.load(
            values + at[:, None] * VALUE_DIM + channel_v[None],
            mask=there[:, None] & (channel_v < VALUE_DIM)[None],
            other=0.0,
        )
        total = total * fade + tl.sum(weights, 1)
        out = out * fade[:, None] + tl.dot(weights.to(kind), v, input_precision="ieee")
        top = best

    at_rows = ((tile * heads + head) * SPLITS + split) * ROWS + rows
    tl.store(tops + at_rows, top)
    tl.store(totals + at_rows, total)
    tl.store(sums + at_rows[:, None] * VALUE_DIM + channel_v[None], out, mask=(channel_v < VALUE_DIM)[None])


@triton.jit
def merge_kernel(
    sums: tl.tensor,  # float32 [tiles, kv_heads, SPLITS, ROWS, VALUE_DIM]
    tops: tl.tensor,  # float32 [tiles, kv_heads, SPLITS, ROWS]
    totals: tl.tensor,  # float32 [tiles, kv_heads, SPLITS, ROWS]
    result: tl.tensor,  # [tokens, heads, VALUE_DIM]
    GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """What the parts of the keys gave, as one softmax over all of them."""
    tile, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    rows, channel = tl.arange(0, ROWS), tl.arange(0, VALUE_BLOCK)
    inside = (channel < VALUE_DIM)[None]
    first = (tile * heads + head) * SPLITS * ROWS + rows
    top = tl.full([ROWS], float("-inf"), tl.float32)
    for split in range(SPLITS):
        top = tl.maximum(top, tl.load(tops + first + split * ROWS))
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, VALUE_BLOCK], tl.float32)
    for split in range(SPLITS):
        at = first + split * ROWS
        weight = tl.exp(tl.load(tops + at) - top)
        total += tl.load(totals + at) * weight
        out += tl.load(sums + at[:, None] * VALUE_DIM + channel[None], mask=inside, other=0.0) * weight[:, None]
    out /= tl.where(total == 0.0, 1.0, total)[:, None]  # a row without a token
    token, asked = tile * TILE + rows // GROUP, head * GROUP + rows % GROUP
    where = (token * heads * GROUP + asked)[:, None] * VALUE_DIM + channel[None]
    tl.store(result + where, out.to(result.dtype.element_ty), mask=(rows < TILE * GROUP)[:, None] & inside)
