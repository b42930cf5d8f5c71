"""`KVCommChatClient`: an Agent Framework chat client over the engine in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from agent_framework import (
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
    validate_tools,
)
from agent_framework.observability import ChatTelemetryLayer
from typing_extensions import Unpack

from kvcomm_agents.checks import shown
from kvcomm_agents.entrypoints.clients.answers import Answer, aread_answer, stream_answer
from kvcomm_agents.entrypoints.clients.settings import ClientKeywords, ClientSettings, make_settings
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.request import Request

from .messages import SELECTOR_FORMATS, to_calls, to_messages, to_options, to_tags, to_tools, to_usage

if TYPE_CHECKING:
    from kvcomm_agents.engine.engine import Engine


class KVCommChatClient(
    FunctionInvocationLayer[Any], ChatMiddlewareLayer[Any], ChatTelemetryLayer[Any], BaseChatClient[Any]
):
    """A model that runs in this process and does not read the same words twice.

        client = KVCommChatClient(model="HuggingFaceTB/SmolLM2-135M-Instruct", temperature=0)
        writer = client.as_agent(name="writer", instructions="You write one sentence.")
        print((await writer.run("How do tides work?")).usage_details)

    Any of `CALL_OPTIONS` (see `kvcomm_agents.entrypoints.clients.settings`) can stand in a call's or an
    agent's options.
    A response's `additional_properties["kvcomm"]` says what was done for it.

    Args:
        model: hub id, local folder or GGUF file.
        middleware: of the framework, for chats and function calls.
        function_invocation_configuration: of the framework.
        additional_properties: kept beside the client.
        settings: see `ClientSettings`.

    Raises:
        ConfigError: a setting out of range.
    """

    OTEL_PROVIDER_NAME: ClassVar[str] = "kvcomm"

    def __init__(
        self,
        model: str,
        *,
        middleware: Sequence[Any] | None = None,
        function_invocation_configuration: Any = None,
        additional_properties: dict[str, Any] | None = None,
        **settings: Unpack[ClientKeywords],
    ) -> None:
        self._settings = make_settings(ClientSettings, {"model": model, **settings})
        self.model = self._settings.model
        super().__init__(
            middleware=middleware,
            function_invocation_configuration=function_invocation_configuration,
            additional_properties=additional_properties,
        )

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **kwargs: Any
    ) -> Awaitable[ChatResponse[Any]] | ResponseStream[ChatResponseUpdate, ChatResponse[Any]]:
        if stream:
            updates = self._updates(messages, options)
            return self._build_response_stream(updates, response_format=options.get("response_format"))
        return self._response(messages, options)

    async def _response(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ChatResponse[Any]:
        engine, request = await self._request(messages, options)
        answer = (await aread_answer(await engine.agenerate(request), request, engine)).whole()
        said = [Content.from_text(answer.text, additional_properties=answer.tags)] if answer.text else []
        return ChatResponse(
            messages=[Message("assistant", [*said, *to_calls(answer)])],
            response_id=f"kvcomm-{uuid4().hex}",
            model=engine.name,
            finish_reason=_finish_reason(answer),
            usage_details=to_usage(answer),
            response_format=options.get("response_format"),
            additional_properties=answer.metadata,
        )

    async def _updates(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> AsyncIterator[ChatResponseUpdate]:
        engine, request = await self._request(messages, options)
        told: dict[str, Any] = {"role": "assistant", "response_id": f"kvcomm-{uuid4().hex}", "model": engine.name}
        async with aclosing(stream_answer(request, engine)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield ChatResponseUpdate(contents=[Content.from_text(piece)], **told)
                    continue
                usage = Content.from_usage(to_usage(piece.whole()))
                yield ChatResponseUpdate(
                    contents=[*to_tags(piece), *to_calls(piece), usage],
                    finish_reason=_finish_reason(piece),
                    additional_properties=piece.metadata,
                    **told,
                )

    async def _request(self, messages: Sequence[Message], options: Mapping[str, Any]) -> tuple[Engine, Request]:
        given = {**options, "tools": await _tools(options.get("tools"))}
        asked = given.get("response_format")
        tools = to_tools(given)
        request = self._settings.request(
            to_messages(messages, given.get("instructions")),
            tools,
            to_options(given, tools=bool(tools)),
            conversation=given.get("conversation_id"),
            selects=getattr(asked, "__name__", "") in SELECTOR_FORMATS,
        )
        return await self._settings.aengine(given.get("model")), request


async def _tools(tools: Any) -> Any:
    """What can be had of an app's tools by the framework's own means: functions become its tools."""
    try:
        return await validate_tools(tools)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"tools={shown(tools)}: {error}") from error


def _finish_reason(answer: Answer) -> Any:
    return answer.finish_reason
