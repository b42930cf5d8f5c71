"""The Triton kernel behind `scatter`. Imported only where Triton is."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def scatter_kernel(
    table: Any,  # int64 [tiles, 12]: two addresses, six strides, new position, old position, tokens, mode
    keys: Any,  # [layers, heads, capacity, KEY_DIM]
    values: Any,  # [layers, heads, capacity, VALUE_DIM]
    cos: Any,  # float32 [positions, PAIRS]
    sin: Any,
    heads: Any,
    capacity: Any,
    PAIRS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROTARY_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """A tile of tokens, at one layer and head."""
    row = table + tl.program_id(0).to(tl.int64) * 12
    at = tl.program_id(1).to(tl.int64)
    layer, head = at // heads, at % heads
    kind = keys.dtype.element_ty
    from_keys = tl.load(row).to(tl.pointer_type(kind))
    from_values = tl.load(row + 1).to(tl.pointer_type(kind))
    from_keys += layer * tl.load(row + 2) + head * tl.load(row + 3)
    from_values += layer * tl.load(row + 5) + head * tl.load(row + 6)
    start, before, tokens, mode = tl.load(row + 8), tl.load(row + 9), tl.load(row + 10), tl.load(row + 11)
    token = tl.arange(0, TILE)
    held = token < tokens
    source = token[:, None] * tl.load(row + 4)
    target = keys + ((at * capacity + start + token) * KEY_DIM)[:, None]

    channel = tl.arange(0, VALUE_BLOCK)
    inside = held[:, None] & (channel < VALUE_DIM)[None]
    moved = tl.load(from_values + token[:, None] * tl.load(row + 7) + channel[None], mask=inside)
    tl.store(values + ((at * capacity + start + token) * VALUE_DIM)[:, None] + channel[None], moved, mask=inside)

    if mode == 0:  # just as they were cached, at this very position
        channel = tl.arange(0, KEY_BLOCK)
        inside = held[:, None] & (channel < KEY_DIM)[None]
        tl.store(target + channel[None], tl.load(from_keys + source + channel[None], mask=inside), mask=inside)
    else:
        if PAIRS > 0:
            pair = tl.arange(0, ROTARY_BLOCK)
            inside = held[:, None] & (pair < PAIRS)[None]
            first = pair * 2 if INTERLEAVED else pair
            second = first + 1 if INTERLEAVED else first + PAIRS
            a = tl.load(from_keys + source + first[None], mask=inside, other=0.0).to(tl.float32)
            b = tl.load(from_keys + source + second[None], mask=inside, other=0.0).to(tl.float32)
            if mode == 2:  # cached elsewhere: turned back first
                angle = (before + token)[:, None] * PAIRS + pair[None]
                c = tl.load(cos + angle, mask=inside, other=1.0)
                s = tl.load(sin + angle, mask=inside, other=0.0)
                length = c * c + s * s
                a, b = (a * c + b * s) / length, (b * c - a * s) / length
            angle = (start + token)[:, None] * PAIRS + pair[None]
            c = tl.load(cos + angle, mask=inside, other=1.0)
            s = tl.load(sin + angle, mask=inside, other=0.0)
            tl.store(target + first[None], (a * c - b * s).to(kind), mask=inside)
            tl.store(target + second[None], (b * c + a * s).to(kind), mask=inside)
        if KEY_DIM > 2 * PAIRS:
            channel = 2 * PAIRS + tl.arange(0, REST_BLOCK)
            inside = held[:, None] & (channel < KEY_DIM)[None]
            tl.store(target + channel[None], tl.load(from_keys + source + channel[None], mask=inside), mask=inside)
