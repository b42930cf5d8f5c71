"""Tiny tokenizers of every kind, with the chat templates of the families that use their like."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LETTERS = [chr(code) for code in range(32, 127)] + ["\n", "é", "東"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {{ ns.system + m.content }}[/INST]{% set ns.system = '' %}"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN = """\
{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each call write within <tool_call></tool_call>:
<tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call><|im_end|>
{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% else %}{% set content = m.content %}{% if m.role == 'assistant' and '</think>' in content %}\
{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}<|im_start|>{{ m.role }}
{{ content }}{% for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS = "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}<|im_start|> assistant"


@dataclass(frozen=True)
class Style:
    """A tokenizer with its template.

    Args:
        tokenizer: a new one.
        special: control strings that are special tokens.
        soft: control strings that are not flagged so.
    """

    tokenizer: PreTrainedTokenizerFast
    special: tuple[str, ...]
    soft: tuple[str, ...] = ()

    @property
    def controls(self) -> tuple[str, ...]:
        return self.special + self.soft


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("i", "m"), ("im", "_"), ("e", "n"), ("en", "d"), ("t", "o"), ("<", "|"), ("|", ">"), ("Ġ", "t")]
    vocabulary = [*alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece(scheme: str) -> Tokenizer:
    """As llama.cpp's and Mistral's: spaces are `▁`, one stands before the text, bytes are the last resort."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS[1:], "▁t", "en", "▁<"]
    merges = [("▁", "t"), ("e", "n"), ("▁", "<")]
    model = models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -3.0), *((letter, -5.0) for letter in LETTERS[1:])]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("▁the", -2.0), ("en", -2.5)], 0, False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_level() -> Tokenizer:
    words = ["[UNK]", "<s>", "</s>", "user", "assistant", "system", "tool", "hello", "<|im_end|>", "<|im_start|>"]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def style(
    made: Tokenizer,
    template: str,
    special: tuple[str, ...],
    soft: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    **flags: bool,
) -> Style:
    """A style; `words` are added tokens that no template writes."""
    made.add_special_tokens([AddedToken(text, special=True, normalized=False, **flags) for text in special])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*soft, *words)])
    named = {"bos_token": "<s>", "eos_token": "</s>"} if "<s>" in special else {"eos_token": special[-1]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **named)
    tokenizer.chat_template = template
    return Style(tokenizer, special, soft)


_IM = ("<|im_start|>", "<|im_end|>")
_TOOL_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
STYLES = {
    "chatml": lambda: style(byte_level(), CHATML, ("<|endoftext|>", *_IM)),
    "llama3": lambda: style(
        byte_level(), LLAMA3, ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "</s>")
    ),
    "mistral": lambda: style(sentence_piece("first"), MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]")),
    "llama2": lambda: style(sentence_piece("always"), MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]")),
    "gemma": lambda: style(
        unigram(), GEMMA, ("<s>", "</s>", "<start_of_turn>", "<end_of_turn>"), words=("<b>", "\n\n", "東京")
    ),
    "qwen": lambda: style(byte_level(), QWEN, ("<|endoftext|>", *_IM), (*_TOOL_TAGS, "<|fim_prefix|>")),
    "phi": lambda: style(byte_level(), PHI, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), rstrip=True),
    "words": lambda: style(word_level(), WORDS, _IM),
}
