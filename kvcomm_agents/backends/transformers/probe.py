"""Probe: the layout of a model's KV, and whether its keys can be moved.

Read from the config where the config says it, then proved by two small forward passes: keys cached
at one position, rotated to another, must be the keys the model caches there.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ...errors import ModelError, UnsupportedModelError
from ...kv.layout import KVLayout
from ...kv.rope import Pairing, Rope
from ...log import get_logger
from .longrope import original_length, outgrown

logger = get_logger(__name__)


# Scalings whose angle is a function of the position alone; others depend on the length of the context.
_STATIC_SCALINGS = frozenset({"default", "linear", "llama3", "yarn", "longrope"})


_PAIRINGS: tuple[Pairing, ...] = ("half", "interleaved")


_RECURRENT = "{} keeps recurrent state instead of KV per token; it cannot be served"


_OWN_CACHE = "the cache of {} is not KV per token ({}); it cannot be served"


_PROBE_TOKENS, _PROBE_SHIFT = 6, 11


def tolerance(dtype: torch.dtype) -> float:
    """Relative error up to which two ways to compute the same keys or logits of a model are the same."""
    return 1e-3 if dtype == torch.float32 else 6e-2


def immovable_by_config(config: PretrainedConfig, max_context: int | None = None) -> str:
    """Why the keys of this architecture cannot be moved exactly, as far as its config tells; empty if it does not.

    Args:
        config: of the text model.
        max_context: tokens that no context exceeds; the model's own limit if left out.
    """
    layer_types = set(getattr(config, "layer_types", None) or ())
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if layer_types - {"full_attention"} or (windowed and not layer_types):
        return "it has sliding-window or chunked attention"
    if getattr(config, "kv_lora_rank", None):
        return "it uses multi-head latent attention (MLA)"
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "its positions are ALiBi biases, not rotations"
    rope = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(parameters, dict) for parameters in rope.values()):
        return "each of its types of layer has rotary positions of its own"
    if "mrope_section" in rope:
        return "it uses multi-axis rotary positions (M-RoPE)"
    if longer_than := outgrown(config, max_context):
        return f"contexts of more than {longer_than} tokens have other rotary factors (longrope)"
    scaling = rope.get("rope_type", "default")
    if isinstance(scaling, str) and scaling not in _STATIC_SCALINGS:
        return f"its rotary scaling {scaling!r} depends on the length of the context"
    return ""


@torch.no_grad()
def inspect(model: PreTrainedModel, max_context: int | None = None) -> KVLayout:
    """Find out the layout of a loaded model's KV.

    Args:
        model: a causal language model in eval mode.
        max_context: tokens that no context exceeds; the model's own limit if left out.

    Raises:
        UnsupportedModelError: the model has no per-token KV of one shape at every layer.
    """
    config = model.config.get_text_config(decoder=True)
    layout, base = _shape(model, max_context)
    rope, reason = None, layout.immovable
    if not reason:
        rope = _find_rope(model, base)
        reason = "" if rope else "moving its keys by rotation does not give the keys it caches"
    if reason:
        logger.warning("%s: exact prefix reuse only, because %s", config.model_type, reason)
    return replace(layout, rope=rope, immovable=reason)


@torch.no_grad()
def outline(config: PretrainedConfig, dtype: str, max_context: int | None = None) -> tuple[KVLayout, int, int]:
    """The layout of a model by its config, from a model without weights; its parameters, and their bytes.

    `rope` is left out: only the weights prove that keys can be moved, and `immovable` says as much as is known.

    Args:
        config: of a causal language model.
        dtype: of torch, by name; "auto" is the config's own.
        max_context: as for `inspect`.

    Raises:
        UnsupportedModelError: as `inspect`.
        ModelError: transformers cannot run the model without its weights.
    """
    reason = immovable_by_config(config.get_text_config(decoder=True), max_context)
    bare = copy.deepcopy(config)
    text = bare.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _STATIC_SCALINGS - {
        "longrope"
    }:  # looks at positions, which have no content here
        text.rope_parameters = {**rope, "rope_type": "default"}
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(bare, dtype=kind).train(False)  # type: ignore[no-untyped-call]
        layout = replace(_shape(model, max_context)[0], immovable=reason)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever a model makes of tensors without content
        raise ModelError(
            f"what {config.model_type} would need cannot be told without its weights: {type(error).__name__}: {error}"
        ) from error
    if not layout.immovable and getattr(model.base_model, "rotary_emb", None) is None:
        layout = replace(layout, immovable="it has no rotary positions")
    weights = list(model.parameters())
    return layout, sum(one.numel() for one in weights), sum(one.nbytes for one in weights)


def _shape(model: PreTrainedModel, max_context: int | None) -> tuple[KVLayout, list[tuple[Tensor, Tensor]]]:
    """The layout without its rope, and what `_probe` gave at position 0."""
    config = model.config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{config.model_type} is an encoder-decoder; only decoder-only models are served")
    if _is_recurrent(config):
        raise UnsupportedModelError(_RECURRENT.format(config.model_type))
    base = _probe(model, 0)
    shapes = {(k.shape[1], k.shape[-1], v.shape[-1]) for k, v in base}
    if len(shapes) != 1:
        raise UnsupportedModelError(f"the layers of {config.model_type} have KV of different shapes: {sorted(shapes)}")
    ((heads, key_dim, value_dim),) = shapes
    first = base[0][0]
    reason, long_after = immovable_by_config(config, max_context), outgrown(config, max_context)
    shape = (len(base), heads, key_dim, value_dim, first.dtype, first.device)
    return KVLayout(*shape, immovable=reason, long_after=long_after), base


def _probe(model: PreTrainedModel, start: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values `[1, kv_heads, tokens, dim]` per layer of a few fixed tokens at positions `start, ...`."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    ids = (torch.arange(_PROBE_TOKENS, device=model.device)[None] * 7 + 3) % vocabulary
    cache, kind = DynamicCache(), model.config.model_type
    positions = torch.arange(start, start + _PROBE_TOKENS, device=model.device)[None]
    try:
        model(ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    except Exception as error:  # whatever a model makes of a cache that is not of its own kind
        if model.device.type == "meta":  # it may be for want of content
            raise
        raise UnsupportedModelError(_OWN_CACHE.format(kind, f"{type(error).__name__}: {error}")) from error
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    found = [(keys, values) for keys, values in pairs if keys is not None and values is not None]
    if not found or len(found) < len(pairs):
        raise UnsupportedModelError(_RECURRENT.format(kind))
    tokens = {tensor.shape[2] for pair in found for tensor in pair}
    if tokens != {_PROBE_TOKENS}:
        raise UnsupportedModelError(_OWN_CACHE.format(kind, f"{max(tokens)} entries for {_PROBE_TOKENS} tokens"))
    return found


def _is_recurrent(config: PretrainedConfig) -> bool:
    """Whether some layers keep a state, as far as transformers' own cache tells."""
    try:
        layers = DynamicCache(config=config).layers
        return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    except Exception:  # whatever a config lacks; the model itself is asked next
        logger.debug("no cache by the config", exc_info=True)
        return False


def _find_rope(model: PreTrainedModel, base: list[tuple[Tensor, Tensor]]) -> Rope | None:
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None:
        return None
    keys = torch.cat([k for k, _ in base])
    moved = torch.cat([k for k, _ in _probe(model, _PROBE_SHIFT)])
    for pairing in _PAIRINGS:
        rope = Rope(rotary, pairing, keys.device, original_length(model.config.get_text_config(decoder=True)))
        try:
            guess = rope.rotate(rope.unrotate(keys, 0, dtype=torch.float32), _PROBE_SHIFT)
        except Exception:  # whatever it wants beside positions
            logger.debug("the rotary embedding cannot be asked for its angles", exc_info=True)
            return None
        error = (guess - moved).float().norm() / moved.float().norm()
        if error < tolerance(keys.dtype):
            return rope
    return None
