"""LangChain messages to the engine's and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from kvcomm_agents.errors import PromptError
from kvcomm_agents.request import Completion, Message

# What ChatMessage is given by apps written for other names of the same roles.
_ROLES = {"human": "user", "ai": "assistant", "developer": "system", "function": "tool"}

# Blocks of an assistant's turn that are not part of what it said: the calls stand in `tool_calls`,
# and chat templates leave earlier reasoning out.
_SILENT_BLOCKS = frozenset({"tool_use", "tool_call", "invalid_tool_call", "function_call", "reasoning", "thinking"})


def to_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """The conversation as the engine takes it.

    Raises:
        PromptError: a message of an unknown kind, or content that is not text.
    """
    return tuple(_to_message(message) for message in messages)


def _to_message(message: BaseMessage) -> Message:
    extra: dict[str, Any] = {}
    if isinstance(message, SystemMessage):
        role = "system"
    elif isinstance(message, HumanMessage):
        role = "user"
    elif isinstance(message, AIMessage):
        role = "assistant"
        if message.tool_calls:
            extra["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
    elif isinstance(message, ToolMessage):
        role = "tool"
        extra["tool_call_id"] = message.tool_call_id
    elif isinstance(message, FunctionMessage):
        role = "tool"
    elif isinstance(message, ChatMessage):
        role = _ROLES.get(message.role, message.role)
    else:
        raise PromptError(f"a {type(message).__name__} cannot be part of a prompt")
    return Message(role=role, content=_text(message, role), name=message.name, extra=extra)


def _text(message: BaseMessage, role: str) -> str:
    """The message's text, exactly as written: text blocks are joined with nothing between them."""
    if isinstance(message.content, str):
        return message.content
    pieces: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            pieces.append(block)
            continue
        kind = block.get("type")
        if kind == "text" and isinstance(block.get("text"), str):
            pieces.append(block["text"])
        elif role == "assistant" and kind in _SILENT_BLOCKS:
            continue
        else:
            raise PromptError(f"a {kind!r} block in a {role} message cannot be part of a prompt: only text can")
    return "".join(pieces)


def to_usage(completion: Completion) -> UsageMetadata:
    """Token counts; `cache_read` are the prompt tokens whose KV was placed instead of computed."""
    report = completion.report
    return UsageMetadata(
        input_tokens=report.prompt_tokens,
        output_tokens=report.output_tokens,
        total_tokens=report.prompt_tokens + report.output_tokens,
        input_token_details=InputTokenDetails(cache_read=report.placed_tokens),
    )


def to_response_metadata(completion: Completion, model: str, *, calls: bool = False) -> dict[str, Any]:
    """What the reply carries beside its text; the engine's whole report is under `kvcomm`.

    Args:
        completion: the answer.
        model: its name.
        calls: it holds tool calls, so that it did not stop because all was said.
    """
    return {
        "model_name": model,
        "model_provider": "kvcomm",
        "finish_reason": "tool_calls" if calls and completion.finish_reason == "stop" else completion.finish_reason,
        "kvcomm": completion.report.as_dict(),
    }
