"""KV as one feature vector per layer and token, and corrections back into KV."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kv.block import KVBlock


def flatten(block: KVBlock, layers: slice | list[int] = slice(1, None)) -> Tensor:
    """All kv heads' keys, then values, of every layer but the first.

    Returns:
        float32 `[layers - 1, tokens, features]`, `features = kv_heads * (key_dim + value_dim)`.
    """
    parts = [part[layers].transpose(1, 2).flatten(2) for part in (block.keys, block.values)]
    return torch.cat(parts, dim=-1).float()


def features(block: KVBlock) -> int:
    """Length of the feature vectors of `flatten`."""
    return block.keys.shape[1] * (block.keys.shape[3] + block.values.shape[3])


def delta(base: KVBlock, true: KVBlock) -> Tensor:
    """What a perfect correction would add: `flatten(true) - flatten(base)`."""
    return flatten(true).sub_(flatten(base))


def add(base: KVBlock, change: Tensor, scale: float = 1.0) -> KVBlock:
    """`base` with `scale * change` (`[layers - 1, tokens, features]`) added above layer 0, in base's dtype."""
    heads, cut = base.keys.shape[1], base.keys.shape[1] * base.keys.shape[3]
    moved = []
    for part, move in ((base.keys, change[..., :cut]), (base.values, change[..., cut:])):
        by_head = move.reshape(*move.shape[:2], heads, -1).transpose(1, 2)
        out = torch.empty_like(part, memory_format=torch.contiguous_format)
        out[0] = part[0]
        # In float32, rounded once.
        out[1:] = torch.add(part[1:].float(), by_head, alpha=scale)
        moved.append(out)
    return KVBlock(moved[0], moved[1])


def owned(block: KVBlock) -> KVBlock:
    """The block, copied if it is a view that would keep a larger tensor alive."""
    whole = all(part.untyped_storage().nbytes() <= part.nbytes for part in (block.keys, block.values))
    return block if whole else block.clone()
