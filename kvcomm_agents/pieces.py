"""Pieces: how new tokens attend to one context at the least cost, exactly: squares, masked pieces, groups of heads.

The fastest kernels know one mask, that of a causal square. Tokens behind a short prefix are made one, with
queries that are thrown away; others go in pieces, so that few keys are read that a mask then hides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_PIECE = 256  # new tokens at once: fewer pay for calls, more for hidden keys
_LEAD = 1 / 3  # of the new tokens: a prefix up to here is cheaper computed than masked
_FOLDED = 128  # tokens; up to here a group's heads in one product are faster, beyond, their repeated mask costs more


@dataclass(slots=True, eq=False)
class Piece:
    """Some of the new tokens: which, one more than the last position they see, and what hides the rest of it."""

    tokens: slice
    end: int
    mask: Tensor | None  # additive, made once for all layers


def lead(targets: slice | Tensor, count: int) -> int | None:
    """Tokens before `count` new ones with which these are one causal square; `None` if that does not pay."""
    if isinstance(targets, Tensor) or count == 1 or targets.start > _LEAD * count:
        return None
    return int(targets.start)


def pieces(targets: slice | Tensor, count: int, like: Tensor) -> list[Piece]:
    """New tokens in pieces, none of which sees keys behind its last token.

    Args:
        targets: their positions: a slice, or ascending `[count]`.
        count: how many they are.
        like: of the dtype and on the device that masks should have.
    """
    if count == 1:
        return [Piece(slice(0, 1), int(targets.stop if isinstance(targets, slice) else targets[0] + 1), None)]
    positions = torch.arange(targets.start, targets.stop, device=like.device) if isinstance(targets, slice) else targets
    found = []
    for start in range(0, count, _PIECE):
        stop = min(start + _PIECE, count)
        end = targets.start + stop if isinstance(targets, slice) else int(targets[stop - 1]) + 1
        hidden = torch.arange(end, device=like.device) > positions[start:stop, None]
        mask = like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        found.append(Piece(slice(start, stop), end, mask))
    return found


def folds(tokens: int, *, causal: bool) -> bool:
    """Whether `grouped_attention` takes the heads of a group as more tokens."""
    return not causal and tokens <= _FOLDED


def grouped_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None, *, causal: bool
) -> Tensor:
    """Attention of `query` `[1, heads, tokens, dim]` over `[kv_heads, seen, dim]`, no key copied for its group.

    Args:
        query: of the new tokens.
        keys: all that are there.
        values: all that are there.
        mask: additive `[tokens, seen]`, once for each head of a group where `folds`; `None` shows everything.
        scale: of the scores; `None` is one over the root of `dim`.
        causal: tokens and seen are the same, each sees itself and what is before it.

    Returns:
        `[1, heads, tokens, value_dim]`.
    """
    _, heads, tokens, dim = query.shape
    kv_heads, seen, _ = keys.shape
    group = heads // kv_heads
    if folds(tokens, causal=causal):  # the heads of a group are as good as more tokens
        out = functional.scaled_dot_product_attention(
            query.reshape(1, kv_heads, group * tokens, dim),
            keys[None],
            values[None],
            attn_mask=mask,
            scale=scale,
        )
    else:
        out = functional.scaled_dot_product_attention(
            query.reshape(kv_heads, group, tokens, dim),
            keys[:, None].expand(kv_heads, group, seen, dim),
            values[:, None].expand(kv_heads, group, seen, values.shape[-1]),
            attn_mask=mask,
            is_causal=causal,
            scale=scale,
        )
    return out.reshape(1, heads, tokens, values.shape[-1])
