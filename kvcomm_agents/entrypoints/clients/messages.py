"""Turns of a conversation as frameworks hand them over, brought into the engine's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import PromptError
from ...request import Message

KEY = "kvcomm"
"""Under which messages carry what is ours, in whatever metadata their framework keeps."""

# Other names of the same roles.
ROLES = {"human": "user", "ai": "assistant", "developer": "system", "function": "tool"}

# Blocks of an assistant's turn that are not part of what it said: the calls stand in `tool_calls`,
# and chat templates leave earlier reasoning out.
_SILENT_BLOCKS = frozenset({"tool_use", "tool_call", "invalid_tool_call", "function_call", "reasoning", "thinking"})


def content_text(content: str | Sequence[Any] | None, role: str) -> str:
    """A content's text, exactly as written: text blocks are joined with nothing between them.

    Raises:
        PromptError: it holds something that is not text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    pieces: list[str] = []
    for block in content:
        if isinstance(block, str):
            pieces.append(block)
            continue
        kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
        if kind == "text" and isinstance(block.get("text"), str):
            pieces.append(block["text"])
        elif role == "assistant" and kind in _SILENT_BLOCKS:
            continue
        else:
            raise PromptError(f"a {kind!r} block in a {role} message cannot be part of a prompt: only text can")
    return "".join(pieces)


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


def call_turn(id: str | None, name: str, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
    """One entry of an assistant's `tool_calls`. Arguments that are no JSON object, a call cut off, stay text."""
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments or "{}")
        except json.JSONDecodeError:
            value = None
        arguments = value if isinstance(value, dict) else arguments
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


def from_openai(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """A conversation in OpenAI's dicts.

    Raises:
        PromptError: one without a role, or content that is not text.
    """
    turns = []
    for message in messages:
        role = ROLES.get(str(message.get("role")), message.get("role"))
        if not role:
            raise PromptError(f"a message without a role cannot be part of a prompt; its keys are {sorted(message)}")
        extra: dict[str, Any] = {}
        if calls := message.get("tool_calls"):
            functions = [(call.get("id"), call["function"]) for call in calls]
            extra["tool_calls"] = [call_turn(id, one["name"], one["arguments"]) for id, one in functions]
        if message.get("tool_call_id"):
            extra["tool_call_id"] = message["tool_call_id"]
        turns.append(Message(role, content_text(message.get("content"), role), message.get("name"), extra))
    return tuple(turns)
