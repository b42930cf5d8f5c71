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
    """Some of the new tokens of a context, and what they see.

    Args:
        tokens: which of the new ones.
        end: one more than the last position they see.
        mask: additive `[tokens, end]`, made once for all layers; `None` shows everything, or belongs to a square.
        lead: tokens before them with which they are a causal square; `None` if they are none.
    """

    tokens: slice
    end: int
    mask: Tensor | None = None
    lead: int | None = None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
        """Attention of these tokens; no key is copied for the heads of its group.

        Args:
            query: `[1, heads, new tokens, dim]`, of all new ones.
            keys: `[kv_heads, positions, dim]`, all that are there.
            values: `[kv_heads, positions, value_dim]`.
            scale: of the scores; `None` is one over the root of `dim`.

        Returns:
            `[1, heads, tokens, value_dim]`.
        """
        query, keys, values = query[:, :, self.tokens], keys[:, : self.end], values[:, : self.end]
        if self.lead is not None:
            asked = functional.pad(query, (0, 0, self.lead, 0)) if self.lead else query
            return _by_group(asked, keys, values, None, scale, causal=True)[:, :, self.lead :]
        _, heads, tokens, dim = query.shape
        kv_heads = keys.shape[0]
        if tokens > _FOLDED:
            return _by_group(query, keys, values, self.mask, scale, causal=False)
        folded = heads // kv_heads * tokens  # the heads of a group are as good as more tokens
        if self.mask is not None and len(self.mask) < folded:
            self.mask = self.mask.repeat(folded // tokens, 1)
        asked = query.reshape(1, kv_heads, folded, dim)
        out = functional.scaled_dot_product_attention(asked, keys[None], values[None], attn_mask=self.mask, scale=scale)
        return out.reshape(1, heads, tokens, values.shape[-1])


def pieces(targets: slice | Tensor, count: int, like: Tensor) -> list[Piece]:
    """New tokens as one square, or in pieces, none of which sees keys behind its last token.

    Args:
        targets: their positions: a slice, or ascending `[count]`.
        count: how many they are.
        like: of the dtype and on the device that masks should have.
    """
    whole = slice(0, count)
    if count == 1:
        return [Piece(whole, int(targets.stop if isinstance(targets, slice) else targets[0] + 1))]
    if isinstance(targets, slice) and targets.start <= _LEAD * count:
        return [Piece(whole, targets.stop, lead=targets.start)]
    positions = torch.arange(targets.start, targets.stop, device=like.device) if isinstance(targets, slice) else targets
    found = []
    for start in range(0, count, _PIECE):
        stop = min(start + _PIECE, count)
        end = targets.start + stop if isinstance(targets, slice) else int(targets[stop - 1]) + 1
        hidden = torch.arange(end, device=like.device) > positions[start:stop, None]
        mask = like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        found.append(Piece(slice(start, stop), end, mask))
    return found


def _by_group(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None, *, causal: bool
) -> Tensor:
    """A group of heads as a batch; `causal` if tokens and positions are the same."""
    _, heads, tokens, dim = query.shape
    kv_heads, seen, _ = keys.shape
    group = heads // kv_heads
    out = functional.scaled_dot_product_attention(
        query.reshape(kv_heads, group, tokens, dim),
        keys[:, None].expand(kv_heads, group, seen, dim),
        values[:, None].expand(kv_heads, group, seen, values.shape[-1]),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
    )
    return out.reshape(1, heads, tokens, values.shape[-1])
