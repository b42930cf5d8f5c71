"""Models of a given shape with random weights: what is timed does not depend on them."""

from __future__ import annotations

from typing import Any

from kvcomm_agents.config import DType
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel, load_tokenizer, torch_device

_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA: dict[str, Any] = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_parameters": _ROPE,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
}
"""Of Llama 3.1 and 3.2."""


def random_model(shape: str, device: str = "auto", dtype: DType = "auto") -> LoadedModel:
    """A model of that shape, with the default model's tokenizer. `auto` is bfloat16 on CUDA, float32 elsewhere.

    Raises:
        ConfigError: no such shape, device or dtype.
        ModelNotFoundError: the default model's tokenizer is not here yet.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    if shape not in SHAPES:
        raise ConfigError(f"there is no shape {shape!r}; choose one of {', '.join(SHAPES)}")
    where = torch_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if where.type == "cuda" else "float32"
    config = LlamaConfig(**_LLAMA, **SHAPES[shape])
    torch.manual_seed(0)
    with torch.device(where):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))  # type: ignore[no-untyped-call]
    return LoadedModel.of(model, load_tokenizer("default"), name=f"{shape} (random weights)")
