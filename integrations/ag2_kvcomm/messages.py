"""AG2's events and tools to the engine's, and answers back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ag2.compact import CompactionSummary
from ag2.events import (
    BaseEvent,
    DataInput,
    Input,
    ModelRequest,
    ModelResponse,
    TextInput,
    ToolResultsEvent,
    Usage,
)
from ag2.response import ResponseProto, ResponseSchema
from ag2.tools.final import FunctionToolSchema
from ag2.tools.schemas import ToolSchema
from fast_depends.library.serializer import SerializerProto
from pydantic import BaseModel

from kvcomm_agents.entrypoints.clients.answers import Answer
from kvcomm_agents.entrypoints.clients.messages import call_turn, carried_tags
from kvcomm_agents.entrypoints.clients.options import to_specs
from kvcomm_agents.entrypoints.clients.pydantic_schemas import schema_of
from kvcomm_agents.errors import PromptError
from kvcomm_agents.request import Message, ToolSpec


def to_messages(prompt: Iterable[str], events: Sequence[BaseEvent], serializer: SerializerProto) -> tuple[Message, ...]:
    """The conversation as the engine takes it: a turn for each input, as AG2's other local client has it.

    Raises:
        PromptError: an input that is not text.
    """
    turns = [Message("system", text) for text in prompt]
    for event in events:
        if isinstance(event, ModelRequest):
            for part in event.parts:
                turns.append(Message("user", _text(part, serializer), spans=carried_tags(part.metadata)))
        elif isinstance(event, CompactionSummary):
            turns.append(Message("user", event.summary))
        elif isinstance(event, ModelResponse):
            calls = [call_turn(call.id, call.name, call.arguments) for call in event.tool_calls.calls]
            called, tags = {"tool_calls": calls} if calls else {}, carried_tags(event.metadata)
            turns.append(Message("assistant", event.content or "", extra=called, spans=tags))
        elif isinstance(event, ToolResultsEvent):
            for one in event.results:
                text = "\n".join(_text(part, serializer) for part in one.result.parts)
                turns.append(Message("tool", text, one.name, {"tool_call_id": one.parent_id}))
    return tuple(turns)


def _text(part: Input, serializer: SerializerProto) -> str:
    if isinstance(part, TextInput):
        return str(part.content)
    if isinstance(part, DataInput):
        return serializer.encode(part.data).decode()
    raise PromptError(f"a {type(part).__name__} cannot be part of a prompt: only text and data can")


def to_tools(tools: Iterable[ToolSchema]) -> tuple[ToolSpec, ...]:
    """Tools as the engine takes them.

    Raises:
        ConfigError: one that a provider would run.
    """
    return to_specs([_openai(tool) for tool in tools])


def _openai(tool: ToolSchema) -> dict[str, object]:
    if not isinstance(tool, FunctionToolSchema):
        return {"type": tool.type}
    function = tool.function
    schema = {"type": "object", "properties": {}, **function.parameters}
    return {"function": {"name": function.name, "description": function.description, "parameters": schema}}


def to_json_schema(schema: ResponseProto[Any]) -> dict[str, Any] | None:
    """The JSON schema of a response; of a pydantic class, one of values that it reads."""
    kind = schema.types if isinstance(schema, ResponseSchema) else None
    if isinstance(kind, type) and issubclass(kind, BaseModel) and schema.json_schema:
        return {key: value for key, value in schema_of(kind).items() if key in schema.json_schema}
    return schema.json_schema


def to_usage(answer: Answer) -> Usage:
    """Token counts; `cache_read_input_tokens` are the prompt tokens that were placed, not computed."""
    report = answer.completion.report
    return Usage(
        prompt_tokens=report.prompt_tokens,
        completion_tokens=report.output_tokens,
        total_tokens=report.prompt_tokens + report.output_tokens,
        cache_read_input_tokens=report.placed_tokens,
    )
