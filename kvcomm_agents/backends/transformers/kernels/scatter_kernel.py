"""The Triton kernel behind `scatter`. Imported only where Triton is.

A name in a branch keeps its type in the other one, as the compiler wants; its interpreter would not mind.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scatter_kernel(
    table: tl.tensor,  # int64 [tiles, 12]: two addresses, six strides, new position, old position, tokens, mode
    keys: tl.tensor,  # [layers, heads, capacity, KEY_DIM]
    values: tl.tensor,  # [layers, heads, capacity, VALUE_DIM]
    cos: tl.tensor,  # float32 [positions, PAIRS]
    sin: tl.tensor,
    heads: tl.tensor,
    capacity: tl.tensor,
    PAIRS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROTARY_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    ALIGNED: tl.constexpr,  # all addresses to 16 bytes, all strides to 8 numbers: the copies are then wide
) -> None:
    """A tile of tokens, at one layer and head."""
    row = table + tl.program_id(0).to(tl.int64) * 12
    at = tl.program_id(1).to(tl.int64)
    layer, head = at // heads, at % heads
    kind = keys.dtype.element_ty
    from_keys = tl.load(row).to(tl.pointer_type(kind))
    from_values = tl.load(row + 1).to(tl.pointer_type(kind))
    key_layer, key_head, key_token = tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    value_layer, value_head, value_token = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    if ALIGNED:
        from_keys, from_values = tl.multiple_of(from_keys, 16), tl.multiple_of(from_values, 16)
        key_layer, key_head, key_token = (
            tl.multiple_of(key_layer, 8),
            tl.multiple_of(key_head, 8),
            tl.multiple_of(key_token, 8),
        )
        value_layer, value_head, value_token = (
            tl.multiple_of(value_layer, 8),
            tl.multiple_of(value_head, 8),
            tl.multiple_of(value_token, 8),
        )
    from_keys += layer * key_layer + head * key_head
    from_values += layer * value_layer + head * value_head
    start, before, tokens, mode = tl.load(row + 8), tl.load(row + 9), tl.load(row + 10), tl.load(row + 11)
    token = tl.arange(0, TILE)
    held = token < tokens
    source = token[:, None] * key_token
    target = keys + ((at * capacity + start + token) * KEY_DIM)[:, None]

    channel = tl.arange(0, VALUE_BLOCK)
    filled = held[:, None] & (channel < VALUE_DIM)[None]
    value = tl.load(from_values + token[:, None] * value_token + channel[None], mask=filled)
    tl.store(values + ((at * capacity + start + token) * VALUE_DIM)[:, None] + channel[None], value, mask=filled)

    if mode == 0:  # just as they were cached, at this very position
        whole = tl.arange(0, KEY_BLOCK)
        copied = held[:, None] & (whole < KEY_DIM)[None]
        tl.store(target + whole[None], tl.load(from_keys + source + whole[None], mask=copied), mask=copied)
    else:
        if PAIRS > 0:
            pair = tl.arange(0, ROTARY_BLOCK)
            turned = held[:, None] & (pair < PAIRS)[None]
            first = pair * 2 if INTERLEAVED else pair
            second = first + 1 if INTERLEAVED else first + PAIRS
            a = tl.load(from_keys + source + first[None], mask=turned, other=0.0).to(tl.float32)
            b = tl.load(from_keys + source + second[None], mask=turned, other=0.0).to(tl.float32)
            if mode == 2:  # cached elsewhere: turned back first
                angle = (before + token)[:, None] * PAIRS + pair[None]
                c = tl.load(cos + angle, mask=turned, other=1.0)
                s = tl.load(sin + angle, mask=turned, other=0.0)
                length = c * c + s * s
                a, b = (a * c + b * s) / length, (b * c - a * s) / length
            angle = (start + token)[:, None] * PAIRS + pair[None]
            c = tl.load(cos + angle, mask=turned, other=1.0)
            s = tl.load(sin + angle, mask=turned, other=0.0)
            tl.store(target + first[None], (a * c - b * s).to(kind), mask=turned)
            tl.store(target + second[None], (b * c + a * s).to(kind), mask=turned)
        if KEY_DIM > 2 * PAIRS:
            rest = 2 * PAIRS + tl.arange(0, REST_BLOCK)
            unturned = held[:, None] & (rest < KEY_DIM)[None]
            tl.store(target + rest[None], tl.load(from_keys + source + rest[None], mask=unturned), mask=unturned)
