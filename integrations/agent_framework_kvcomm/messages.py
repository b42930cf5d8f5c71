"""Agent Framework's messages and options to the engine's, and answers back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent_framework import Content, FunctionTool, ToolMode, UsageDetails, validate_tool_mode
from agent_framework import Message as FrameworkMessage
from agent_framework.exceptions import ContentError

from kvcomm_agents.checks import shown
from kvcomm_agents.entrypoints.clients import options as asked
from kvcomm_agents.entrypoints.clients.answers import Answer
from kvcomm_agents.entrypoints.clients.messages import call_turn, carried_tags, listed
from kvcomm_agents.entrypoints.clients.names import in_our_names
from kvcomm_agents.errors import ConfigError, PromptError
from kvcomm_agents.request import Message, ToolSpec

SELECTOR_FORMATS = frozenset({"AgentOrchestrationOutput"})
"""Answers by which a group chat's orchestrator says who is to speak next."""

# What the framework keeps for itself or for services that store conversations.
_IGNORED = frozenset({"tools", "tool_choice", "instructions", "metadata", "store", "conversation_id"})
_UNSUPPORTED = frozenset({"frequency_penalty", "presence_penalty", "logit_bias"})
_NAMES = {"allow_multiple_tool_calls": "parallel_tool_calls"}


def to_messages(messages: Sequence[FrameworkMessage], instructions: str | None = None) -> tuple[Message, ...]:
    """The conversation as the engine takes it. `author_name` stays beside the text.

    What an assistant's turn holds beside text and calls, reasoning or what a service ran for it, is passed over.

    Raises:
        PromptError: content that is not text.
    """
    turns = [Message("system", instructions)] if instructions else []
    names: dict[str | None, str | None] = {}
    for message in listed(messages):
        if not isinstance(message, FrameworkMessage):
            raise PromptError(f"a {type(message).__name__} is no message, and cannot be part of a prompt")
        said: list[str] = []
        calls: list[dict[str, Any]] = []
        results: list[Message] = []
        for content in message.contents:
            if content.type == "text":
                said.append(content.text or "")
            elif content.type == "function_call":
                names[content.call_id] = content.name
                calls.append(call_turn(content.call_id, content.name or "", content.arguments or {}))
            elif content.type == "function_result":
                name, about = names.get(content.call_id), {"tool_call_id": content.call_id}
                results.append(Message("tool", _result_text(content), name, about))
            elif message.role != "assistant":
                raise PromptError(
                    f"a {content.type!r} content in a {message.role} message cannot be part of a prompt: only text can"
                )
        if said or calls or not results:
            called = {"tool_calls": calls} if calls else {}
            carriers = [message.additional_properties, *(content.additional_properties for content in message.contents)]
            tags = carried_tags(*carriers)
            turns.append(Message(message.role, "".join(said), message.author_name, called, tags))
        turns += results
    return tuple(turns)


def _result_text(content: Content) -> str:
    others = {item.type for item in content.items or () if item.type != "text"}
    if others:
        raise PromptError(f"a tool's result holds {', '.join(sorted(others))}, and only text can be part of a prompt")
    if content.items:
        return "\n".join(item.text or "" for item in content.items)
    if content.result is None:
        return content.exception or ""
    return str(content.result)


def to_tools(options: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    """The tools of a call, or those of them that its `tool_choice` allows.

    Raises:
        ConfigError: a tool that a service would run.
    """
    tools = asked.listed(() if options.get("tools") is None else options["tools"])
    specs = asked.to_specs(
        [tool.to_json_schema_spec() if isinstance(tool, FunctionTool) else _as_dict(tool) for tool in tools]
    )
    allowed = (_tool_mode(options) or {}).get("allowed_tools")
    return tuple(spec for spec in specs if allowed is None or spec.name in allowed)


def _tool_mode(options: Mapping[str, Any]) -> ToolMode | None:
    try:
        return validate_tool_mode(options.get("tool_choice"))
    except (ContentError, TypeError) as error:
        raise ConfigError(f"tool_choice={shown(options['tool_choice'])} is none: {error}") from error


def _as_dict(tool: Any) -> Mapping[str, Any]:
    return tool if isinstance(tool, Mapping) else {"type": type(tool).__name__}


def to_options(options: Mapping[str, Any], *, tools: bool) -> dict[str, Any]:
    """Options of a call in the engine's words.

    Args:
        options: as the framework gives them, validated.
        tools: the call has some.

    Raises:
        ConfigError: one that a local model does not have.
    """
    named = in_our_names(options)
    given = {name: value for name, value in named.items() if value is not None and name not in _IGNORED}
    if unsupported := given.keys() & _UNSUPPORTED:
        raise ConfigError(f"{', '.join(sorted(unsupported))} cannot be had here; repetition_penalty can")
    given = {_NAMES.get(name, name): value for name, value in given.items()}
    mode = _tool_mode(options)
    if mode is not None and mode["mode"] != "auto" and (tools or mode["mode"] == "required"):
        given["tool_choice"] = mode.get("required_function_name") or mode["mode"]
    return given


def to_usage(answer: Answer) -> UsageDetails:
    """Token counts; `cache_read_input_token_count` are the prompt tokens that were placed, not computed."""
    report = answer.completion.report
    return UsageDetails(
        input_token_count=report.prompt_tokens,
        output_token_count=report.output_tokens,
        total_token_count=report.prompt_tokens + report.output_tokens,
        cache_read_input_token_count=report.placed_tokens,
    )


def to_tags(answer: Answer) -> list[Content]:
    """What a stream ends its text with: nothing but the tags of its spans.

    The framework puts the pieces together and keeps their properties; those of an update are the response's alone.
    """
    return [Content.from_text("", additional_properties=answer.tags)] if answer.text and answer.tags else []


def to_calls(answer: Answer) -> list[Content]:
    """Calls as contents. One that was cut off keeps what it has, and is not there to be run."""
    return [
        Content.from_function_call(
            call.id,
            call.name,
            arguments=call.arguments,
            informational_only=not call.complete,
            exception=None if call.complete else answer.cut,
        )
        for call in answer.calls
    ]
