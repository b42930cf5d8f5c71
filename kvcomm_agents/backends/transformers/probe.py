"""Probe: the layout of a loaded model's KV, and whether its keys can be moved.

Proved by two small forward passes: keys cached at one position, rotated to another, must be the keys the model
caches there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ...errors import UnsupportedModelError
from ...kv.layout import KVLayout
from ...kv.rope import Pairing, Rope
from ...log import get_logger
from .longrope import original_length, outgrown
from .structure import immovable, no_kv_per_token

logger = get_logger(__name__)

Pair = tuple[Tensor, Tensor]
"""Keys and values of a layer, `[1, kv_heads, tokens, dim]`."""

_PAIRINGS: tuple[Pairing, ...] = ("half", "interleaved")
_TOKENS, _SHIFT = 6, 11


def tolerance(dtype: torch.dtype) -> float:
    """Relative error up to which two ways to compute the same keys or logits of a model are the same."""
    return 1e-3 if dtype == torch.float32 else 6e-2


@torch.no_grad()
def inspect(model: PreTrainedModel, max_context: int | None = None) -> KVLayout:
    """Find out the layout of a loaded model's KV.

    Args:
        model: a causal language model in eval mode.
        max_context: tokens that no context exceeds; the model's own limit if left out.

    Raises:
        UnsupportedModelError: an encoder-decoder.
    """
    layout, pairs = shape(model, max_context)
    if layout.level != "full":
        return layout
    rope = _find_rope(model, pairs)
    if rope is None:
        return replace(layout, level="exact", reason="moving its keys by rotation does not give the keys it caches")
    return replace(layout, rope=rope)


def shape(model: PreTrainedModel, max_context: int | None = None) -> tuple[KVLayout, list[Pair]]:
    """The layout without its rope, as far as config and shapes tell, and what a few tokens cached at position 0.

    Args:
        model: may be without weights.
        max_context: as for `inspect`.

    Raises:
        UnsupportedModelError: as `inspect`.
    """
    config = model.config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{config.model_type} is an encoder-decoder; only decoder-only models are served")
    plain = KVLayout(0, 0, 0, 0, model.dtype, model.device).plain(no_kv_per_token(config))
    if plain.reason:
        return plain, []
    pairs = _cached(model, 0)
    if isinstance(pairs, str):
        return plain.plain(pairs), []
    shapes = {(keys.shape[1], keys.shape[-1], values.shape[-1]) for keys, values in pairs}
    if len(shapes) != 1:
        return plain.plain(f"its layers have KV of different shapes: {sorted(shapes)}"), []
    ((heads, key_dim, value_dim),) = shapes
    first, reason = pairs[0][0], immovable(config, max_context)
    layout = KVLayout(
        len(pairs),
        heads,
        key_dim,
        value_dim,
        first.dtype,
        first.device,
        level="exact" if reason else "full",
        reason=reason,
        long_after=outgrown(config, max_context),
    )
    return layout, pairs


def _cached(model: PreTrainedModel, start: int) -> list[Pair] | str:
    """What the layers cache of a few fixed tokens at positions `start, ...`; a reason, if that is not KV per token."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    ids = (torch.arange(_TOKENS, device=model.device)[None] * 7 + 3) % vocabulary
    cache = DynamicCache()
    positions = torch.arange(start, start + _TOKENS, device=model.device)[None]
    try:
        model(ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    except Exception as error:  # whatever a model makes of a cache that is not of its own kind
        if model.device.type == "meta":  # it may be for want of content
            raise
        logger.debug("no KV per token", exc_info=True)
        return f"its cache is not KV per token ({type(error).__name__}: {error})"
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    cached = [(keys, values) for keys, values in pairs if keys is not None and values is not None]
    if not cached or len(cached) < len(pairs):
        return "it caches no KV per token"
    tokens = {tensor.shape[2] for pair in cached for tensor in pair}
    if tokens != {_TOKENS}:
        return f"its cache is not KV per token ({max(tokens)} entries for {_TOKENS} tokens)"
    return cached


def _find_rope(model: PreTrainedModel, pairs: list[Pair]) -> Rope | None:
    """What moves the keys that were cached at position 0; `None` if nothing does."""
    rotary = getattr(model.base_model, "rotary_emb", None)
    shifted = _cached(model, _SHIFT)
    if rotary is None or isinstance(shifted, str):
        return None
    keys, moved = (torch.cat([key for key, _ in cached]) for cached in (pairs, shifted))
    for pairing in _PAIRINGS:
        rope = Rope(rotary, pairing, keys.device, original_length(model.config.get_text_config(decoder=True)))
        try:
            guess = rope.rotate(rope.unrotate(keys, 0, dtype=torch.float32), _SHIFT)
        except Exception:  # whatever it wants beside positions
            logger.debug("the rotary embedding cannot be asked for its angles", exc_info=True)
            return None
        error = (guess - moved).float().norm() / moved.float().norm()
        if error < tolerance(keys.dtype):
            return rope
    return None
