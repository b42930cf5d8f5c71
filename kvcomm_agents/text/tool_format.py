"""How a model writes tool calls: read off its own chat template, or a plain form where that has none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None, bool], str]
"""Turns, tools in OpenAI's form, whether the answer's header is added -> text, by the model's own template."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """`open {"name": ..., "arguments": ...} between {...} close`.

    Args:
        open: before the first call. Empty for models that write bare JSON.
        close: after the last call.
        between: between two calls; `None` if the template takes one call only.
        arguments: key of the arguments.
        native: the chat template takes tools, calls and results itself.
    """

    open: str = "<tool_call>"
    close: str = "</tool_call>"
    between: str | None = "</tool_call>\n<tool_call>"
    arguments: str = "arguments"
    native: bool = False

    @property
    def opening(self) -> tuple[str, str]:
        """`open` as what tells a call from text, and what follows that up to the first call."""
        mark = self.open.strip()
        if not mark:
            return '{"name": ', ""
        return mark, self.open[self.open.index(mark) + len(mark) :]

    def head(self, name: str) -> str:
        """A call up to its arguments; without the mark if that is part of it."""
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments}": '
        return head if self.open.strip() else head.removeprefix(self.opening[0])


PLAIN = CallFormat()

_TOOL, _OTHER, _ARGUMENT = "probe_tool", "probe_other", {"probe_argument": "probe_value"}
_RESULT, _ANSWER = "probe_result_text", "probe_answer_text"


def detect(render: Render) -> CallFormat:
    """The format that a chat template uses, or `PLAIN` if it has none or one that is not understood.

    The template is given a conversation with tools, calls and results, and what it makes of the
    calls is taken apart.
    """
    user = {"role": "user", "content": "probe_question"}
    tools = [_openai_tool(_TOOL), _openai_tool(_OTHER)]
    try:
        header = render([user], tools, True)
        if _TOOL not in header or "probe_description" not in header:
            return PLAIN
        result = {"role": "tool", "name": _TOOL, "tool_call_id": "callprobe", "content": _RESULT}
        single = _called([_TOOL])
        if _RESULT not in render([user, single, result], tools, True):
            return PLAIN
        one = render([user, single], tools, False)
        answer = render([user, {"role": "assistant", "content": _ANSWER}], tools, False)
    except (jinja2.TemplateError, TypeError, KeyError, ValueError):
        return PLAIN
    after = answer[answer.index(_ANSWER) + len(_ANSWER) :] if _ANSWER in answer else ""
    # what stands before every answer is no part of a call: the turn's header, an empty thought
    begin = max(len(os.path.commonprefix([other, one])) for other in (header, answer))
    first = _find_call(one, _TOOL, begin)
    if first is None:
        return PLAIN
    start, end, key = first
    opening = one[begin:start]
    closing = one[end:].removesuffix(after)
    between = None
    try:
        two = render([user, _called([_TOOL, _OTHER])], tools, False)
        second = _find_call(two, _OTHER, end)
        if second is not None and two[:end] == one[:end]:
            between = two[end : second[0]]
    except (jinja2.TemplateError, TypeError, KeyError, ValueError):
        pass  # a template for one call at a time
    return CallFormat(opening.lstrip(), closing.rstrip("\n"), between, key, native=True)


def _called(names: Sequence[str]) -> dict[str, Any]:
    calls = [
        {"type": "function", "id": "callprobe", "function": {"name": name, "arguments": _ARGUMENT}} for name in names
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _openai_tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"probe_argument": {"type": "string"}}}
    return {
        "type": "function",
        "function": {"name": name, "description": "probe_description", "parameters": parameters},
    }


def _find_call(text: str, name: str, begin: int) -> tuple[int, int, str] | None:
    """Where the call of a tool stands, and the key of its arguments: a JSON object of two keys, the name first."""
    at = text.find(f'"{name}"', begin)
    start = text.rfind("{", begin, at) if at >= 0 else -1
    if start < 0 or not text.startswith('{"name": ', start):
        return None
    try:
        call, end = json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError:
        return None
    keys = [key for key in call if key != "name"]
    if len(keys) != 1 or call[keys[0]] != _ARGUMENT:
        return None
    return start, end, keys[0]
