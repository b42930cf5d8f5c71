"""Turns of a conversation as frameworks hand them over, brought into the engine's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...checks import checked, items, shown
from ...errors import PromptError
from ...json_values import json_object
from ...request import Message

KEY = "kvcomm"
"""Under which messages carry what is ours, in whatever metadata their framework keeps."""

# Other names of the same roles.
ROLES = {"human": "user", "ai": "assistant", "developer": "system", "function": "tool"}

# Where blocks of some type have their text.
_TEXT_OF = {"text": "text", "output_text": "text", "input_text": "text", "text-plain": "text", "refusal": "refusal"}
_HOLDERS = frozenset({"tool_result", "search_result", "document", "resource"})
"""Blocks that hold other blocks, or a text, somewhere in them."""


def listed(messages: Any) -> tuple[Any, ...]:
    """Messages of any framework as a tuple.

    Raises:
        PromptError: they are none, or one message alone.
    """
    found: tuple[Any, ...] = checked("messages", messages, lambda given: items(given, "messages"), PromptError)
    return found


def content_text(content: Any, role: str) -> str:
    """A content's text, exactly as written: text blocks are joined with nothing between them.

    Blocks that other providers left in a history are read where they hold text. What else stands in an assistant's
    turn is passed over: its calls are in `tool_calls`, and chat templates leave earlier reasoning out.

    Raises:
        PromptError: it holds something that is not text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        raise PromptError(f"the content of a {role} message is {shown(content)}, and only text can be part of a prompt")
    return "".join(_block_text(block, role) for block in content)


def _block_text(block: Any, role: str) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    if isinstance(block, Mapping):
        text = block.get(_TEXT_OF.get(str(kind), "text" if kind is None else ""), _MISSING)
        if text is None or isinstance(text, str):
            return text or ""
        if kind in ("json", None) and "json" in block:
            value = checked("a json block", {"json": block["json"]}, json_object, PromptError)["json"]
            return json.dumps(value, ensure_ascii=False)
        if kind in _HOLDERS and (held := _held(block)) is not None:
            return content_text(held, role)
        if role == "assistant" and text is _MISSING:
            return ""
    raise PromptError(f"a {kind!r} block in a {role} message cannot be part of a prompt: only text can")


_MISSING = object()


def _held(block: Mapping[str, Any]) -> Any:
    """What a block holds: in itself, or in its source or resource."""
    for holder in (block, block.get("source"), block.get("resource")):
        if isinstance(holder, Mapping):
            for name in ("content", "text", "data"):
                if isinstance(holder.get(name), str | list) and holder.get("type") != "base64":
                    return holder[name]
    return None


def carried_tags(*carriers: Any) -> tuple[str, ...]:
    """Tags of spans that a message carries since it was an answer of ours (`Answer.metadata`).

    Args:
        carriers: its metadata, wherever it may have them; the first with tags is taken. What is no
            mapping, or holds none, is passed over.
    """
    for carrier in carriers:
        ours = carrier.get(KEY) if isinstance(carrier, Mapping) else None
        tags = ours.get("spans") if isinstance(ours, Mapping) else None
        if isinstance(tags, list | tuple):
            return tuple(tag for tag in tags if isinstance(tag, str))
    return ()


def call_turn(id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    """One entry of an assistant's `tool_calls`. Arguments that are no JSON object, a call cut off, stay text."""
    if arguments is None or isinstance(arguments, str):
        try:
            value = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            value = None
        arguments = value if isinstance(value, dict) else arguments
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


def _calls(value: Any) -> tuple[Any, ...]:
    return items(value, "calls")


def _call_of(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise PromptError(f"a call is {shown(call)}, and must be {{'id': ..., 'function': {{...}}}}")
    return call_turn(call.get("id"), function.get("name"), function.get("arguments"))


def from_openai(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """A conversation in OpenAI's dicts.

    Raises:
        PromptError: one that is no dict or has no role, calls of another form, or content that is not text.
    """
    return tuple(map(_from_openai, listed(messages)))


def _from_openai(message: Any) -> Message:
    if not isinstance(message, Mapping) or not message.get("role"):
        keys = f"its keys are {sorted(map(str, message))}" if isinstance(message, Mapping) else "it is no dict"
        raise PromptError(f"a message without a role cannot be part of a prompt; {keys}")
    role: Any = ROLES.get(str(message["role"]), message["role"])
    extra: dict[str, Any] = {}
    if calls := message.get("tool_calls"):
        extra["tool_calls"] = [_call_of(call) for call in checked("tool_calls", calls, _calls, PromptError)]
    if message.get("tool_call_id"):
        extra["tool_call_id"] = message["tool_call_id"]
    return Message(role, content_text(message.get("content"), str(role)), message.get("name"), extra)
