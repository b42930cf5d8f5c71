"""AutoGen's messages and tools to the engine's, and answers back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from autogen_core import FunctionCall
from autogen_core.models import (
    AssistantMessage,
    CreateResult,
    FinishReasons,
    FunctionExecutionResultMessage,
    LLMMessage,
    RequestUsage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import Tool, ToolSchema
from pydantic import BaseModel

from kvcomm_agents.entrypoints.clients import options
from kvcomm_agents.entrypoints.clients.answers import Answer
from kvcomm_agents.entrypoints.clients.messages import call_turn, content_text, listed
from kvcomm_agents.entrypoints.clients.pydantic_schemas import schema_of
from kvcomm_agents.errors import ConfigError, PromptError
from kvcomm_agents.request import Message, ToolSpec
from kvcomm_agents.text.schemas.cycles import with_references

_FINISH: dict[str, FinishReasons] = {"stop": "stop", "length": "length", "tool_calls": "function_calls"}


def to_messages(messages: Sequence[LLMMessage]) -> tuple[Message, ...]:
    """The conversation as the engine takes it. `source` stays beside the text.

    Raises:
        PromptError: a message of an unknown kind, or content that is not text.
    """
    return tuple(turn for message in listed(messages) for turn in _turns(message))


def _turns(message: LLMMessage) -> list[Message]:
    if isinstance(message, SystemMessage):
        return [Message("system", message.content)]
    if isinstance(message, UserMessage):
        return [Message("user", content_text(message.content, "user"), message.source)]
    if isinstance(message, AssistantMessage):
        if isinstance(message.content, str):
            return [Message("assistant", message.content, message.source)]
        calls = [call_turn(call.id, call.name, call.arguments) for call in message.content]
        return [Message("assistant", message.thought or "", message.source, {"tool_calls": calls})]
    if isinstance(message, FunctionExecutionResultMessage):
        return [Message("tool", one.content, one.name, {"tool_call_id": one.call_id}) for one in message.content]
    raise PromptError(f"Unknown message type: a {type(message).__name__} cannot be part of a prompt")


def to_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as AutoGen's event log shows them."""
    return [
        {"role": one.role, "content": one.content, **({"name": one.name} if one.name else {}), **one.extra}
        for one in messages
    ]


def to_tools(tools: Sequence[Tool | ToolSchema]) -> tuple[ToolSpec, ...]:
    """Tools as the engine takes them. AutoGen's schemas of models that refer to themselves hold themselves."""
    schemas = [tool.schema if isinstance(tool, Tool) else tool for tool in options.listed(tools)]
    functions = [
        {**schema, "parameters": with_references(schema.get("parameters") or {})}
        if isinstance(schema, Mapping)
        else schema
        for schema in schemas
    ]
    return options.to_specs([{"function": function} for function in functions])


def to_response_format(
    json_output: bool | type[BaseModel] | None,
    messages: Sequence[Message],
    schemas: Mapping[str, dict[str, Any]],
) -> dict[str, Any] | None:
    """What `json_output` asks for, in OpenAI's form. A schema that the messages already spell out is not shown again.

    Args:
        json_output: as AutoGen has it.
        messages: of the call.
        schemas: stand in for those of classes, by name.

    Raises:
        ConfigError: it is neither a bool nor a pydantic class.
    """
    if json_output is None or json_output is False:
        return None
    if json_output is True:
        return {"type": "json_object"}
    if isinstance(json_output, type) and issubclass(json_output, BaseModel):
        schema = schemas.get(json_output.__name__) or schema_of(json_output)
        if all(any(f'"{name}"' in message.content for message in messages) for name in _names(schema)):
            return {"type": "json_object", "schema": schema}  # as in MagenticOne's ledger prompt
        return {"type": "json_schema", "json_schema": {"schema": schema}}
    raise ConfigError(f"json_output={json_output!r} is neither a bool nor a pydantic model class")


def _names(schema: Any) -> set[str]:
    """Names of all properties, at any depth."""
    if isinstance(schema, list):
        return {name for one in schema for name in _names(one)}
    if not isinstance(schema, Mapping):
        return set()
    own = schema.get("properties")
    below = {name for value in schema.values() for name in _names(value)}
    return below | (set(own) if isinstance(own, Mapping) else set())


def to_result(answer: Answer) -> CreateResult:
    """An answer. Text beside calls is the `thought`, as with AutoGen's other clients; a call cut off stays one."""
    report = answer.completion.report
    calls = [FunctionCall(id=call.id, name=call.name, arguments=call.arguments) for call in answer.calls]
    return CreateResult(
        finish_reason=_FINISH.get(answer.finish_reason, "unknown"),
        content=calls or answer.text,
        usage=RequestUsage(prompt_tokens=report.prompt_tokens, completion_tokens=report.output_tokens),
        cached=False,  # in AutoGen's words a whole answer that was not produced anew
        thought=(answer.text.strip() or None) if calls else None,
    )


def loggable(result: CreateResult) -> dict[str, Any]:
    """A result in JSON types."""
    value: dict[str, Any] = json.loads(result.model_dump_json())
    return value
