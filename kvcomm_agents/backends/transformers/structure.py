"""Structure: what a model's config tells of how far its KV can be reused.

Nothing here knows an architecture by name. What the config leaves open is measured on the loaded model
(`probe`, `proof`).
"""

from __future__ import annotations

from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from ...log import get_logger
from .longrope import outgrown

logger = get_logger(__name__)

# Scalings whose angle is a function of the position alone; others depend on the length of the context.
STATIC_SCALINGS = frozenset({"default", "linear", "llama3", "yarn", "longrope"})

_PER_TOKEN = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)


def no_kv_per_token(config: PretrainedConfig) -> str:
    """Why contexts of this architecture are not KV per token, as far as transformers' own cache tells; else empty.

    Args:
        config: of the text model.
    """
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # whatever a config lacks; the model itself is asked next
        logger.debug("no cache by the config", exc_info=True)
        return ""
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        return "it keeps recurrent state instead of KV per token"
    others = sorted({type(layer).__name__ for layer in layers if type(layer) not in _PER_TOKEN})
    return f"its cache holds more than KV per token ({', '.join(others)})" if others else ""


def immovable(config: PretrainedConfig, max_context: int | None = None) -> str:
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
    if isinstance(scaling, str) and scaling not in STATIC_SCALINGS:
        return f"its rotary scaling {scaling!r} depends on the length of the context"
    return ""
