"""Messages -> prompt ids: the canonical tokenisation of the text the app composed."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from ..config import ControlPolicy
from ..errors import PromptError
from ..request import Constraint, Message, ToolSpec, require_messages, require_tools
from .control_strings import Control, ControlStrings
from .marked_prompt import PromptParts, find_forged
from .tool_calls import TOOLS_TEXT, instructed, plain_turns
from .tool_format import CallFormat, detect

ROLES = ("system", "user", "assistant", "tool")

# Private-use characters around a message's number; the first is repeated until no prompt holds it.
_MARK, _END = "\ue000", "\ue001"

# For base models, whose tokenizer carries no chat template.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens `start:stop` of the prompt lie wholly within the content of one message."""

    message: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt and where its messages stand in it.

    Args:
        ids: token ids of the whole prompt.
        parts: in prompt order, at most one a message. A message has none if it is empty, or if the
            template left it out or changed more than the white space around it.
    """

    ids: tuple[int, ...]
    parts: tuple[Part, ...]


class PromptRenderer:
    """Renders conversations with a model's own chat template.

    Args:
        tokenizer: of the model; without a chat template, `PLAIN_TEMPLATE` serves.
        control_strings: see `EngineConfig`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control_strings: ControlPolicy = "text") -> None:
        self.tokenizer = tokenizer
        self._template = None if tokenizer.chat_template else PLAIN_TEMPLATE
        self._strings: ControlStrings | None = None
        if control_strings == "text":
            self._strings = ControlStrings(tokenizer, f"{tokenizer.chat_template or PLAIN_TEMPLATE}{TOOLS_TEXT}")

    @cached_property
    def format(self) -> CallFormat:
        """How this model writes tool calls."""
        return detect(self._render)

    def text(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), constraint: Constraint | None = None
    ) -> str:
        """The prompt text, ending where the assistant's answer begins.

        Neighbouring turns of one role are merged only if the template refuses them. What the template
        cannot say of tools, calls, results and the answer's schema is said in plain text (see `tools`).

        Raises:
            PromptError: no messages, an unknown role, or roles the template refuses.
        """
        return self._text(_parts(messages, tools, constraint))

    def ids(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), constraint: Constraint | None = None
    ) -> tuple[int, ...]:
        """Token ids of `text(...)`. Control strings in it become control tokens where the template wrote them.

        Raises:
            PromptError: as `text`.
        """
        return tuple(self._encode(*self._controlled(_parts(messages, tools, constraint)))[0])

    def content_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as they are where it is part of a message."""
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._strings is not None and (self._strings.hold([text]) or self._strings.exceeded(ids, text)):
            return tuple(self._strings.encode(text)[0])
        return ids

    def segments(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), constraint: Constraint | None = None
    ) -> Rendered:
        """Token ids as `ids`, and which of them are whose content.

        Raises:
            PromptError: as `text`.
        """
        prompt = _parts(messages, tools, constraint)
        text, controls = self._controlled(prompt)
        ids, offsets = self._encode(text, controls)
        if not offsets:  # the tokenizer cannot say which token is which text
            return Rendered(tuple(ids), ())
        # some tokenizers leave a token's leading space out of its offsets: it begins where the last one ended
        stops = list(accumulate((stop for _, stop in offsets), max))
        starts = [min(start, before) for (start, _), before in zip(offsets, [0, *stops], strict=False)]
        parts = []
        for message, begin, end in self._locate(prompt, text):
            part = Part(message, bisect_left(starts, begin), bisect_right(stops, end))
            if part.start < part.stop:
                parts.append(part)
        return Rendered(tuple(ids), tuple(parts))

    def _text(self, prompt: PromptParts) -> str:
        messages, tools, constraint = prompt.messages, prompt.tools, prompt.constraint
        if not messages:
            raise PromptError("the message list is empty; a prompt needs at least one message")
        for message in messages:
            if message.role not in ROLES:
                raise PromptError(f"unknown role {message.role!r}; it must be one of {', '.join(ROLES)}")
        told = instructed(messages, tools, constraint, self.format)
        turns = [_turn(message) for message in (told if self.format.native else plain_turns(told))]
        given = [tool.as_openai() for tool in tools] if tools and self.format.native else None
        try:
            return self._render(turns, given)
        except jinja2.TemplateError as refusal:
            merged = _merge(turns)
            if len(merged) == len(turns):
                raise _refused(turns, refusal) from refusal
            try:
                return self._render(merged, given)
            except jinja2.TemplateError as again:
                raise _refused(merged, again) from again

    def _controlled(self, prompt: PromptParts) -> tuple[str, tuple[Control, ...] | None]:
        """The prompt text and, if messages hold control strings, where the template's own are."""
        text = self._text(prompt)
        marked = find_forged(prompt, text, self._text, self._strings) if self._strings else None
        return (marked.text, marked.controls) if marked else (text, None)

    def _encode(self, text: str, controls: tuple[Control, ...] | None) -> tuple[list[int], list[tuple[int, int]]]:
        if self._strings is not None and controls is not None:
            return self._strings.encode(text, controls)
        is_fast = self.tokenizer.is_fast
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=is_fast)
        if self._strings is not None and self._strings.exceeded(encoded["input_ids"], text):
            return self._strings.encode(text, self._strings.read(text).controls)
        return encoded["input_ids"], encoded["offset_mapping"] if is_fast else []

    def _locate(self, prompt: PromptParts, text: str) -> Iterator[tuple[int, int, int]]:
        """`(message, begin, end)` of each content in the prompt text.

        The prompt is rendered once more with a mark in place of each content. What stands between
        the marks is the template's own text, so that a content is not mistaken for an equal piece of
        it, or for an equal message.
        """
        mark = _MARK
        while mark in text:
            mark += _MARK
        marked = tuple(
            replace(message, content=f"{mark}{number}{_END}") if message.content.strip() else message
            for number, message in enumerate(prompt.messages)
        )
        try:
            pieces = re.split(f"{mark}(\\d+){_END}", self._text(replace(prompt, messages=marked)))
        except PromptError:  # a template that looks into contents
            pieces = [""]
        at, seen = len(pieces[0]), set[int]()
        if not text.startswith(pieces[0]):
            return
        for number, after in zip(pieces[1::2], pieces[2::2], strict=True):
            message = int(number)
            end = _content_end(text, at, prompt.messages[message].content, after)
            if end is None:  # changed by the template: go on behind it
                behind = text.find(after, at) if after else -1
                if behind < 0:
                    return
                at = behind + len(after)
                continue
            if message not in seen:
                seen.add(message)
                yield message, at, end
            at = end + len(after)

    def _render(
        self, turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, add_header: bool = True
    ) -> str:
        text = self.tokenizer.apply_chat_template(
            turns,
            tools=tools,  # type: ignore[arg-type]
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_header,
        )
        return str(text)


def agent_name(messages: Sequence[Message], ids: Sequence[int]) -> str:
    """A name for a caller that gave none: a hash of its system messages, else of the prompt's first tokens."""
    system = "\n".join(message.content for message in messages if message.role == "system")
    source = system or " ".join(map(str, ids[:32]))
    return f"agent-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _parts(messages: Sequence[Message], tools: Sequence[ToolSpec], constraint: Constraint | None) -> PromptParts:
    return PromptParts(require_messages(messages), require_tools(tools), constraint)


def _content_end(text: str, at: int, content: str, after: str) -> int | None:
    """Where a content that begins at `at` ends, if it or its trimmed form stands there before `after`."""
    for form in (content, content.rstrip(), content.lstrip(), content.strip()):
        if text.startswith(form + after, at):
            return at + len(form)
    return None


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
