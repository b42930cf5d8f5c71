"""Every causal language model of the installed transformers as a tiny random one.

A config is the architecture's own with its sizes made small, by the names that such sizes have; what an
architecture demands beyond that is in `_DEMANDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, END = 300, 257
WINDOW = 16

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "eos_token_id": END,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 4,
    "index_topk": 16,
    "kv_lora_rank": 16,
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "moe_num_experts": 4,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "local_attention": WINDOW,
    "window_size": WINDOW,
    "hidden_size": 32,
    "embedding_size": 32,
}
_SIZES |= dict.fromkeys(
    (
        "dense_intermediate_size",
        "expert_ffn_hidden_size",
        "feed_forward_size",
        "ffn_dim",
        "ffn_hidden_size",
        "intermediate_size",
        "intermediate_size_mlp",
        "moe_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_expert_intermediate_size",
        "shared_experts_intermediate_size",
        "shared_intermediate_size",
    ),
    48,
)


def text_types() -> list[str]:
    """Model types of all causal language models, by name."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **more: Any) -> PretrainedConfig:
    """The config of a tiny model of an architecture; `more` goes over what it has."""
    kind = CONFIG_MAPPING[model_type]
    whole = kind()
    text = whole.get_text_config(decoder=True)
    demanded = {**_DEMANDS.get(model_type, {}), **more}
    if text is whole or text.model_type == model_type:
        return kind(**_small(text) | demanded)
    inner = {**_small(text), "model_type": text.model_type, **_DEMANDS.get(text.model_type, {})}
    return kind(text_config=inner, **demanded)


def _small(config: PretrainedConfig) -> dict[str, Any]:
    fields = config.to_dict()
    named = {name: fields.get(config.attribute_map.get(name, name)) for name in _SIZES}
    small = {name: _SIZES[name] for name, value in named.items() if value is not None}
    if "pad_token_id" in fields:
        small["pad_token_id"] = 0
    if "is_decoder" in fields:  # of encoders, which are causal then
        small["is_decoder"] = True
    if "kv_lora_rank" in fields:  # latent attention: every head has its own key
        small["num_key_value_heads"] = _SIZES["num_attention_heads"]
    return small


_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_DEMANDS: Mapping[str, dict[str, Any]] = {
    "bailing_hybrid": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 500.0} for kind in ("full_attention", "sliding_attention")
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "num_key_value_heads": 4},
    "blt": {
        "patcher_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 16,
        },
        "encoder_config": {
            "hidden_size": 16,
            "hidden_size_global": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 16,
        },
        "decoder_config": {
            "hidden_size": 16,
            "hidden_size_global": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 16,
        },
        "global_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 16,
        },
        "encoder_hash_byte_group_vocab": 50,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {
        "per_layer_config": {},
        "head_dim": 16,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
    },
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [48] * 4,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY},
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "moss_transcribe_diarize": {
        "audio_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    },
    "phi4_multimodal": {
        "vision_config": _VISION | {"crop_size": 28},
        "audio_config": {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2},
    },
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 100,
        "split_ngram_parts": 1,
        "ple_embed_dim": 32,
        "hc_lowrank": 8,
    },
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": "auto", "mamba_d_state": 8, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "cpmant": {"dim_ff": 48, "dim_head": 8},
    "gemma3": {"vision_config": _VISION},
    "git": {"vision_config": _VISION},
    "got_ocr2": {"vision_config": _VISION},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": "auto",
        "mamba_d_state": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {"num_layers": 2, "q_lora_rank": 16, "zero_expert_num": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "reformer": {
        "axial_pos_embds": False,
        "attention_head_size": 8,
        "num_hidden_layers": 2,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 8,
    },
    "roc_bert": {"shape_vocab_size": 50, "pronunciation_vocab_size": 50},
    "xlnet": {"d_head": 8},
    "xlstm": {
        "embedding_dim": 64,
        "hidden_size": 64,
        "num_heads": 4,
        "num_blocks": 2,
        "num_hidden_layers": 2,
        "qk_dim_factor": 1.0,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 7,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
