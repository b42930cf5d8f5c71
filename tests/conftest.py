"""Doubles for the whole suite: tiny random models of every architecture family, and a byte tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.models.loading import LoadedModel

torch.set_num_threads(1)  # tiny models are slower on many threads

BOS, END = "<|start|>", "<|end|>"
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# Templates that know tools: what they say of the tools, the turns, and both with calls in tags.
TURNS = """\
{%- for m in messages %}<|start|>{{ m.role }}
{% if m.tool_calls %}{{ m.content }}CALLS{% else %}{{ m.content }}{% endif %}<|end|>
{% endfor %}{% if add_generation_prompt %}<|start|>assistant
{% endif %}"""
TOOLS = "{% if tools %}<|start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|end|>\n{% endif %}"
TOOL_TEMPLATE = TOOLS + TURNS.replace(
    "CALLS",
    '{% for c in m.tool_calls %}{% if not loop.first %}{{ "\\n" }}{% endif %}<tool_call>\n'
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}',
)
_SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 257,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 64,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}

MOVABLE = {
    "llama": ("llama", {}),
    "llama-tied-bias": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama3-scaling": ("llama", {"rope_parameters": _LLAMA3}),
    "yarn-scaling": ("llama", {"rope_parameters": _YARN}),
    "linear-scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "phi3-partial": ("phi3", {"partial_rotary_factor": 0.5, "sliding_window": None}),
    "gemma": ("gemma", {"head_dim": 16}),
    "cohere-interleaved": ("cohere", {}),
    "glm-interleaved-partial": ("glm", {"head_dim": 16}),
}
IMMOVABLE = {
    "dynamic-ntk": ("llama", {"rope_parameters": _DYNAMIC}, "depends on the length"),
    "longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}, "longrope"),
    "sliding-window": ("mistral", {"sliding_window": 16}, "sliding-window"),
    "gemma2-softcap": ("gemma2", {"head_dim": 16, "sliding_window": 16}, "sliding-window"),
    "learned-positions": ("gpt2", {}, "moving its keys"),
    "alibi": ("bloom", {}, "ALiBi"),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus two special tokens; round-trips any text."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, additional_special_tokens=[BOS])
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """A random model of a family in `MOVABLE` or `IMMOVABLE`, sharp enough that greedy text varies."""
    model_type, extra = (MOVABLE[family] if family in MOVABLE else IMMOVABLE[family])[:2]
    config_class = CONFIG_MAPPING[model_type]
    if model_type == "gpt2":
        config = config_class(vocab_size=300, n_embd=32, n_layer=3, n_head=4, n_positions=512, eos_token_id=257)
    elif model_type == "bloom":
        config = config_class(vocab_size=300, hidden_size=32, n_layer=3, n_head=4, eos_token_id=257)
    else:
        config = config_class(**{**_SMALL, **extra})
    attention = "eager" if model_type in ("gemma2", "bloom") else "sdpa"
    model = sharpened(config, attn_implementation=attention, dtype=dtype)
    return LoadedModel.of(model, byte_tokenizer(), name=f"tiny-{family}")


def sharpened(config: PretrainedConfig, seed: int = 0, **options: object) -> PreTrainedModel:
    """A random model, sharp enough that greedy text varies; `options` as `from_config` takes them."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], LoadedModel]:
    """`tiny("llama")` is a random model of that family, made once."""
    made: dict[str, LoadedModel] = {}

    def get(family: str) -> LoadedModel:
        if family not in made:
            made[family] = tiny_model(family)
        return made[family]

    return get


@pytest.fixture
def engine(tiny: Callable[[str], LoadedModel]) -> Iterator[Engine]:
    """An engine on the tiny llama in exact mode, closed afterwards."""
    engine = Engine(tiny("llama"), EngineConfig(reuse=ReuseConfig(mode="exact")))
    yield engine
    engine.close()
