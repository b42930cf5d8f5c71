"""Attention over many contexts at once, each in its own preallocated memory.

The new tokens of every context in a forward pass stand in one row `[1, tokens]`, so that all that is
per token (projections, MLP, output) runs once over them. Only attention knows whose they are: each
context's keys and values are written into its own cache and read there, with no padding, no copy of
a cache and no expansion of grouped heads. Registered with transformers' `AttentionInterface`; a call
that brings no `ragged` is plain SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ...errors import UnsupportedModelError
from ...kv.layout import KVLayout
from ...log import get_logger
from .cache import PlanCache
from .probe import tolerance
from .query_blocks import pieces

logger = get_logger(__name__)

NAME = "kvcomm_ragged"
_PROBE = 8  # tokens


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one context contributes to a forward pass.

    Args:
        cache: of the context; everything before the tokens that they should see is in place.
        tokens: their ids.
        targets: their positions: a slice, or ascending `[tokens]`.
        keep: logits are wanted for this many of the last of them.
    """

    cache: PlanCache
    tokens: Sequence[int]
    targets: slice | Tensor
    keep: int = 1

    @property
    def end(self) -> int:
        """One more than the last position."""
        return int(self.targets.stop if isinstance(self.targets, slice) else self.targets[-1] + 1)

    @property
    def positions(self) -> Tensor:
        """Positions `[tokens]`."""
        if isinstance(self.targets, slice):
            return torch.arange(self.targets.start, self.targets.stop, device=self.cache.layout.device)
        return self.targets


class Attends(Protocol):
    """Attention of the tokens of one forward pass, which knows their contexts."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Write `key` and `value` `[1, kv_heads, tokens, dim]` to their caches, and let `query` see these.

        Args:
            layer: index of the attention layer.
            query: `[1, heads, tokens, dim]`.
            key: of the new tokens, rotated.
            value: of the new tokens.
            scale: of the scores; `None` is one over the root of `dim`.

        Returns:
            `[1, tokens, heads, value_dim]`.
        """
        ...


class Ragged:
    """The parts of one forward pass, laid out for its attention layers.

    Args:
        parts: of different contexts.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._rows: list[_Row] = []
        start = 0
        for part in parts:
            self._rows.append(_Row(part, slice(start, start + len(part.tokens))))
            start += len(part.tokens)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """As `Attends` says."""
        if len(self._rows) == 1:
            return self._rows[0].attend(layer, query, key, value, scale).transpose(1, 2).contiguous()
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        for row in self._rows:
            here = row.where
            seen = row.attend(layer, query[:, :, here], key[:, :, here], value[:, :, here], scale)
            out[:, here] = seen.transpose(1, 2)
        return out


class _Row:
    """One part: views of its cache at every layer, and its pieces."""

    def __init__(self, part: Part, where: slice) -> None:
        self.where, self.targets = where, part.targets
        cache, end = part.cache, part.end
        self._keys, self._values = cache.keys[:, :, :end].unbind(0), cache.values[:, :, :end].unbind(0)
        self._pieces = pieces(part.targets, len(part.tokens), cache.keys)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        keys, values = self._keys[layer], self._values[layer]
        if isinstance(self.targets, slice):
            keys[:, self.targets] = key[0]
            values[:, self.targets] = value[0]
        else:
            keys.index_copy_(1, self.targets, key[0])
            values.index_copy_(1, self.targets, value[0])
        seen = [piece.attend(query, keys, values, scale) for piece in self._pieces]
        return seen[0] if len(seen) == 1 else torch.cat(seen, dim=2)


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    ragged: Attends | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function that models call; `ragged` comes through the model's keyword arguments.

    Raises:
        UnsupportedModelError: the layer wants more than softmax over all that is before a token.
    """
    if ragged is None:
        plain: tuple[Tensor, Tensor | None] = _sdpa(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    special = [name for name in _SPECIAL if kwargs.get(name) is not None]
    if special:
        raise UnsupportedModelError(f"its attention has {', '.join(special)}")
    layer: Any = module.layer_idx
    return ragged.attend(layer, query, key, value, scaling), None


_SPECIAL = ("sliding_window", "softcap", "s_aux", "position_bias")
_interface: AttentionInterface = AttentionInterface()  # type: ignore[no-untyped-call]
_masks: AttentionMaskInterface = AttentionMaskInterface()  # type: ignore[no-untyped-call]
_sdpa = _interface["sdpa"]

AttentionInterface.register(NAME, ragged_attention)
AttentionMaskInterface.register(NAME, _masks["sdpa"])


def forward(model: PreTrainedModel, parts: Sequence[Part]) -> Tensor:
    """One forward pass over all parts; logits `[kept, vocabulary]` in the model's dtype, part by part.

    Args:
        model: its attention is `NAME`.
        parts: of different contexts.
    """
    device = parts[0].cache.layout.device
    kept, start = list[int](), 0
    for part in parts:
        start += len(part.tokens)
        kept += range(start - part.keep, start)
    ids = torch.tensor([token for part in parts for token in part.tokens], device=device)
    positions = torch.cat([part.positions for part in parts])
    return call(model, ids, positions, torch.tensor(kept or [0], device=device), Ragged(parts))[: len(kept)]


def call(model: PreTrainedModel, ids: Tensor, positions: Tensor, kept: Tensor, ragged: Attends) -> Tensor:
    """A forward pass over tokens whose attention is `ragged`'s; logits `[kept, vocabulary]` in the model's dtype.

    Args:
        model: its attention is `NAME`.
        ids: int64 `[tokens]`.
        positions: int64 `[tokens]`.
        kept: int64 `[kept]`, indices of tokens.
        ragged: knows the contexts of the tokens.
    """
    output = model(
        input_ids=ids[None],
        # A 4-D mask is passed on untouched, so none is made.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=kept,
        ragged=ragged,
    )
    logits: Tensor = output.logits[0]
    return logits


@torch.no_grad()
def enable(model: PreTrainedModel, layout: KVLayout) -> bool:
    """Switch a model to ragged attention, if it then says what it says without; whether it does.

    Plain calls of the model go on as with SDPA.

    Args:
        model: whose attention is softmax over all that is before a token.
        layout: of its KV.
    """
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    texts = [[(7 * at + 3 + row) % vocabulary for at in range(_PROBE)] for row in range(2)]
    first, second = slice(0, _PROBE - 2), slice(_PROBE - 2, _PROBE)
    plain = torch.cat([model(torch.tensor([ids], device=layout.device)).logits[0, -1:] for ids in texts])
    caches = [PlanCache(layout, _PROBE) for _ in texts]
    try:
        model.set_attn_implementation(NAME)
        forward(
            model, [Part(caches[0], texts[0][first], first, 0), Part(caches[1], texts[1][:-1], slice(0, _PROBE - 1))]
        )
        rest = [Part(caches[0], texts[0][second], second), Part(caches[1], texts[1][-1:], slice(_PROBE - 1, _PROBE))]
        error = float((forward(model, rest) - plain).float().norm() / plain.float().norm())
    except Exception as problem:  # whatever a model makes of an argument it does not know
        logger.debug("no ragged attention", exc_info=True)
        reason = str(problem)
    else:
        if error < tolerance(layout.dtype):
            return True
        reason = f"it differs by {error:.1g}"
    logger.warning(
        "%s: requests run one after another, because ragged attention fails: %s", type(model).__name__, reason
    )
    try:
        model.set_attn_implementation("sdpa")
    except (ValueError, ImportError):
        model.set_attn_implementation("eager")
    return False
