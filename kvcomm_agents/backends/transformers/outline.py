"""Outline: the layout of a model's KV by its config alone. No weights are loaded."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from ...errors import ModelError, UnsupportedModelError
from ...kv.layout import KVLayout
from .probe import shape
from .structure import STATIC_SCALINGS, immovable


@torch.no_grad()
def outline(config: PretrainedConfig, dtype: str, max_context: int | None = None) -> tuple[KVLayout, int, int]:
    """The layout of a model by its config, from a model without weights; its parameters, and their bytes.

    Only the weights prove it: `rope` is left out, and the level is the highest that the config allows.

    Args:
        config: of a causal language model.
        dtype: of torch, by name; "auto" is the config's own.
        max_context: as for `inspect`.

    Raises:
        UnsupportedModelError: as `inspect`.
        ModelError: transformers cannot run the model without its weights.
    """
    bare = copy.deepcopy(config)
    text = bare.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    scaled = rope.get("rope_type", "default") not in STATIC_SCALINGS - {"longrope"}
    if scaled:  # looks at positions, which have no content here
        text.rope_parameters = {**rope, "rope_type": "default"}
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(bare, dtype=kind).train(False)  # type: ignore[no-untyped-call]
        layout, _ = shape(model, max_context)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever a model makes of tensors without content
        raise ModelError(
            f"what {config.model_type} would need cannot be told without its weights: {type(error).__name__}: {error}"
        ) from error
    if layout.level != "plain":
        reason = immovable(config.get_text_config(decoder=True), max_context)
        if not reason and getattr(model.base_model, "rotary_emb", None) is None:
            reason = "it has no rotary positions"
        layout = replace(layout, level="exact" if reason else "full", reason=reason)
    weights = list(model.parameters())
    return layout, sum(weight.numel() for weight in weights), sum(weight.nbytes for weight in weights)
