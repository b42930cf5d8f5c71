"""`KVCommClient`: what a `KVCommConfig` makes, AG2's client over the engine in this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ag2.config.client import LLMClient
from ag2.context import ConversationContext
from ag2.events import (
    BaseEvent,
    ModelMessage,
    ModelMessageChunk,
    ModelResponse,
    ToolCallEvent,
    ToolCallsEvent,
)
from ag2.response import ResponseProto
from ag2.tools.schemas import ToolSchema
from ag2.utils import AGENT_CONTEXT_DEPENDENCY_KEY
from fast_depends.library.serializer import SerializerProto

from kvcomm_agents.entrypoints.clients.answers import Answer, stream_answer
from kvcomm_agents.entrypoints.clients.settings import ClientSettings
from kvcomm_agents.request import Request

from .messages import to_json_schema, to_messages, to_tools, to_usage

if TYPE_CHECKING:
    from kvcomm_agents.engine.engine import Engine


class KVCommClient(LLMClient):
    """Answers for one `KVCommConfig`.

    Args:
        settings: see `ClientSettings`.
        call_options: some of `CALL_OPTIONS`, for every call.
        streaming: send the text as it is written.
    """

    def __init__(self, settings: ClientSettings, call_options: Mapping[str, Any], *, streaming: bool) -> None:
        self._settings, self._call_options, self._streaming = settings, call_options, streaming

    async def __call__(
        self,
        messages: Sequence[BaseEvent],
        context: ConversationContext,
        *,
        tools: Iterable[ToolSchema],
        response_schema: ResponseProto[Any] | None,
        serializer: SerializerProto,
    ) -> ModelResponse:
        """One answer. What was done for it is under `kvcomm` in its message's metadata.

        Raises:
            ConfigError: an option or a tool that cannot be had here.
            IncompleteAnswerError: a response of the schema was cut off by `max_tokens` or a stop string.
            RequestError: see `kvcomm_agents.errors`.
        """
        prompt, options = list(context.prompt), dict(self._call_options)
        if response_schema is not None:
            prompt += [response_schema.system_prompt] if response_schema.system_prompt else []
            if response_schema.json_schema:
                schema = {"schema": to_json_schema(response_schema)}
                options["response_format"] = {"type": "json_schema", "json_schema": schema}
        specs = to_tools(tools)
        if not specs:
            options.pop("tool_choice", None)
        request = self._settings.request(
            to_messages(prompt, messages, serializer),
            specs,
            options,
            agent=getattr(context.dependencies.get(AGENT_CONTEXT_DEPENDENCY_KEY), "name", None),
            conversation=str(context.stream.id),
        )
        engine = await self._settings.aengine(options.get("model"))
        answer = (await self._answer(engine, request, context)).whole()
        message = ModelMessage(answer.text, metadata=answer.metadata) if answer.text else None
        if message is not None:
            await context.send(message)
        calls = [ToolCallEvent(call.name, id=call.id, arguments=call.arguments) for call in answer.calls]
        return ModelResponse(
            message=message,
            tool_calls=ToolCallsEvent(calls),
            usage=to_usage(answer),
            model=engine.name,
            provider="kvcomm",
            finish_reason=answer.finish_reason,
        )

    async def _answer(self, engine: Engine, request: Request, context: ConversationContext) -> Answer:
        async with aclosing(stream_answer(request, engine)) as pieces:
            while isinstance(piece := await anext(pieces), str):
                if self._streaming:
                    await context.send(ModelMessageChunk(piece))
        return piece
