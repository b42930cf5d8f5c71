"""Messages -> prompt ids: the canonical tokenisation of the text the app composed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from .errors import PromptError
from .request import Message

ROLES = ("system", "user", "assistant", "tool")

# For base models, whose tokenizer carries no chat template.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


class PromptRenderer:
    """Renders conversations with a model's own chat template.

    Args:
        tokenizer: of the model; without a chat template, `PLAIN_TEMPLATE` serves.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._template = None if tokenizer.chat_template else PLAIN_TEMPLATE

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt text, ending where the assistant's answer begins.

        Neighbouring turns of one role are merged only if the template refuses them.

        Raises:
            PromptError: no messages, an unknown role, or roles the template refuses.
        """
        if not messages:
            raise PromptError("the message list is empty; a prompt needs at least one message")
        for message in messages:
            if message.role not in ROLES:
                raise PromptError(f"unknown role {message.role!r}; it must be one of {', '.join(ROLES)}")
        turns = [_turn(message) for message in messages]
        try:
            return self._apply(turns)
        except jinja2.TemplateError as refusal:
            merged = _merge(turns)
            if len(merged) == len(turns):
                raise _refused(turns, refusal) from refusal
            try:
                return self._apply(merged)
            except jinja2.TemplateError as again:
                raise _refused(merged, again) from again

    def ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of `text(messages)`."""
        encoded = self.tokenizer(self.text(messages), add_special_tokens=False)
        return tuple(encoded["input_ids"])

    def _apply(self, turns: list[dict[str, Any]]) -> str:
        text = self.tokenizer.apply_chat_template(
            turns, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
        return str(text)


def agent_name(messages: Sequence[Message], ids: Sequence[int]) -> str:
    """A name for a caller that gave none: a hash of its system messages, else of the prompt's first tokens."""
    system = "\n".join(message.content for message in messages if message.role == "system")
    source = system or " ".join(map(str, ids[:32]))
    return f"agent-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content, **message.extra}
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _merge(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    merged: list[dict[str, Any]] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and last["role"] == turn["role"] and turn["role"] in ("user", "assistant", "system"):
            merged[-1] = {**last, **turn, "content": f"{last['content']}\n\n{turn['content']}"}
        else:
            merged.append(turn)
    return merged


def _refused(turns: list[dict[str, Any]], refusal: jinja2.TemplateError) -> PromptError:
    roles = ", ".join(turn["role"] for turn in turns)
    return PromptError(f"the model's chat template refuses the roles ({roles}): {refusal}")
