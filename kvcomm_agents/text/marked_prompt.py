"""Marked prompt: a prompt with marks in all that comes from messages, to see whose its control strings are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..errors import PromptError
from ..request import Constraint, Message, ToolSpec
from .control_strings import ControlStrings, MarkedPrompt

Mark = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class PromptParts:
    """All that an app says of one prompt.

    Args:
        messages: the conversation.
        tools: described in the prompt.
        constraint: whose schema the prompt may show.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    constraint: Constraint | None = None

    def texts(self) -> Iterator[str]:
        """Every text in it, keys of schemas and arguments among them."""
        for message in self.messages:
            yield message.content
            yield message.name or ""
            yield from _texts(message.extra)
        for tool in self.tools:
            yield tool.name
            yield tool.description
            yield from _texts(tool.parameters)
        if self.constraint is not None:
            yield from _texts(self.constraint.schema)

    def marked(self, mark: Mark, mark_key: Mark, mark_answer: Mark) -> PromptParts:
        """The same with every text marked.

        Args:
            mark: marks a text.
            mark_key: marks a key: templates look some up by name.
            mark_answer: marks the content of an assistant's message: templates look for thoughts in it.
        """

        def change(value: Any) -> Any:
            if isinstance(value, str):
                return mark(value)
            if isinstance(value, Mapping):
                return {mark_key(key): change(item) for key, item in value.items()}
            return [change(item) for item in value] if isinstance(value, list) else value

        messages = tuple(
            replace(
                message,
                content=(mark_answer if message.role == "assistant" else mark)(message.content),
                name=message.name and mark(message.name),
                extra=change(message.extra),
            )
            for message in self.messages
        )
        tools = tuple(
            replace(tool, name=mark(tool.name), description=mark(tool.description), parameters=change(tool.parameters))
            for tool in self.tools
        )
        constraint = self.constraint and replace(self.constraint, schema=change(self.constraint.schema))
        return PromptParts(messages, tools, constraint)


def find_forged(
    parts: PromptParts, text: str, render: Callable[[PromptParts], str], strings: ControlStrings
) -> MarkedPrompt | None:
    """The prompt with its own control strings told from those in messages; `None` if there are none of the latter.

    What could begin a control string is marked, so that none can be put together of pieces either. Where the
    template looks at such characters, and would make another prompt of marked messages, less is marked: whole
    control strings only, and in answers only those of special tokens, if the template looks for the others.

    Args:
        parts: what the prompt is made of.
        text: the prompt, as it is rendered without marks.
        render: makes a prompt of parts.
        strings: of the tokenizer.

    Raises:
        PromptError: the template refuses messages that do not hold control strings.
    """
    if not strings.may_hold(parts.texts()):
        return None
    mark_special = partial(strings.mark, special=True)
    ways = [(strings.mark_heads, answer) for answer in (strings.mark_heads, strings.mark, mark_special)]
    holds = strings.hold(parts.texts())
    if holds:
        ways += [(strings.mark, answer) for answer in (strings.mark, mark_special)]
    found: MarkedPrompt | None = None
    for mark, mark_answer in ways:
        before, found = found, _rendered(parts.marked(mark, strings.mark, mark_answer), render, strings)
        if found is not None and found.text == text:
            return found if found.forged else None
    if not holds:
        return None
    # The template takes what stands in messages for its own. What they hold is text all the same.
    if before is not None and (found is None or before.text == found.text):
        found = before  # in answers too
    if found is None:
        raise PromptError(f"the template wants control strings in messages: {', '.join(strings.held(parts.texts()))}")
    return found if found.forged else None


def _rendered(parts: PromptParts, render: Callable[[PromptParts], str], strings: ControlStrings) -> MarkedPrompt | None:
    try:
        return strings.read(render(parts))
    except PromptError:  # the template looks into texts
        return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
