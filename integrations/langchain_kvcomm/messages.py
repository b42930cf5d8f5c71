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

from kvcomm_agents.entrypoints.clients.answers import Answer
from kvcomm_agents.entrypoints.clients.messages import ROLES, call_turn, carried_tags, content_text, listed
from kvcomm_agents.errors import PromptError
from kvcomm_agents.request import Completion, Message


def to_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """The conversation as the engine takes it.

    Raises:
        PromptError: a message of an unknown kind, or content that is not text.
    """
    return tuple(map(_to_message, listed(messages)))


def _to_message(message: BaseMessage) -> Message:
    extra: dict[str, Any] = {}
    if isinstance(message, SystemMessage):
        role = "system"
    elif isinstance(message, HumanMessage):
        role = "user"
    elif isinstance(message, AIMessage):
        role = "assistant"
        if message.tool_calls:
            extra["tool_calls"] = [call_turn(call["id"], call["name"], call["args"]) for call in message.tool_calls]
    elif isinstance(message, ToolMessage):
        role = "tool"
        extra["tool_call_id"] = message.tool_call_id
    elif isinstance(message, FunctionMessage):
        role = "tool"
    elif isinstance(message, ChatMessage):
        role = ROLES.get(message.role, message.role)
    else:
        raise PromptError(f"a {type(message).__name__} cannot be part of a prompt")
    text = content_text(message.content, role)
    spans = carried_tags(message.response_metadata, message.additional_kwargs)
    return Message(role=role, content=text, name=message.name, extra=extra, spans=spans)


def to_usage(completion: Completion) -> UsageMetadata:
    """Token counts; `cache_read` are the prompt tokens whose KV was placed instead of computed."""
    report = completion.report
    return UsageMetadata(
        input_tokens=report.prompt_tokens,
        output_tokens=report.output_tokens,
        total_tokens=report.prompt_tokens + report.output_tokens,
        input_token_details=InputTokenDetails(cache_read=report.placed_tokens),
    )


def to_response_metadata(answer: Answer, model: str) -> dict[str, Any]:
    """What the reply carries beside its text: under `kvcomm` the engine's whole report and the tags of its spans."""
    return {
        "model_name": model,
        "model_provider": "kvcomm",
        "finish_reason": answer.finish_reason,
        **answer.metadata,
    }
