"""What LangChain says of tools and formats -> what the engine takes, and calls back to LangChain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from kvcomm_agents.checks import shown
from kvcomm_agents.entrypoints.clients import options as asked
from kvcomm_agents.errors import ConfigError, KVCommError
from kvcomm_agents.request import ToolSpec
from kvcomm_agents.text.tool_calls import Call, CallPiece, unclosable

from .schemas import answer_schema, json_schema

AnyTool = Mapping[str, Any] | type | Callable[..., Any] | BaseTool


def to_openai_tools(tools: Sequence[AnyTool], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, whatever they are: functions, classes, dicts, LangChain's own.

    Raises:
        ConfigError: one is none of these.
    """
    return [_to_openai_tool(tool, strict) for tool in asked.listed(tools)]


def _to_openai_tool(tool: AnyTool, strict: bool | None) -> dict[str, Any]:
    try:
        if isinstance(tool, Mapping):
            return convert_to_openai_tool(dict(tool), strict=strict)
        parameters = json_schema(tool, strict=strict)
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # as LangChain's converter puts it
        if isinstance(error, KVCommError):
            raise
        raise ConfigError(f"{shown(tool)} cannot be made a tool: {error}") from error
    about = {"name": parameters.pop("title"), "description": parameters.pop("description", "")}
    function = {**about, "parameters": parameters, **({} if strict is None else {"strict": strict})}
    return {"type": "function", "function": function}


def to_specs(tools: Sequence[AnyTool]) -> tuple[ToolSpec, ...]:
    """Tools as the engine takes them.

    Raises:
        ConfigError: one is run by some provider's server.
    """
    return asked.to_specs(to_openai_tools(tools))


def to_response_format(asked_for: Any) -> Mapping[str, Any] | None:
    """A `response_format` as a dict: a class or function is brought into JSON schema.

    Raises:
        ConfigError: it is none of these.
    """
    if asked_for is None or isinstance(asked_for, Mapping):
        return asked_for
    try:
        asked_schema = answer_schema(asked_for)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        if isinstance(error, KVCommError):
            raise
        raise ConfigError(f"response_format={shown(asked_for)} makes no JSON schema: {error}") from error
    return {"type": "json_schema", "json_schema": {"name": asked_schema.name, "schema": asked_schema.schema}}


def to_tool_calls(calls: Sequence[Call]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    """Calls whose arguments are whole, and the others."""
    valid, invalid = [], []
    for call in calls:
        arguments = call.decoded()
        if arguments is not None:
            valid.append(tool_call(name=call.name, args=arguments, id=call.id))
        else:
            invalid.append(
                invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error="the arguments were cut off")
            )
    return valid, invalid


def to_call_chunk(piece: CallPiece) -> ToolCallChunk:
    """A piece of a call for a streamed message."""
    return tool_call_chunk(name=piece.name, args=piece.arguments, id=piece.id, index=piece.index)


def to_cut_chunks(calls: Sequence[Call]) -> list[ToolCallChunk]:
    """The ends of calls that were cut off: LangChain would complete their JSON, and they be run with what they have."""
    return [
        tool_call_chunk(name=None, args=unclosable(call.arguments), id=None, index=index)
        for index, call in enumerate(calls)
        if not call.complete
    ]
