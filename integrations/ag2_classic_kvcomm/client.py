"""`KVCommModelClient`: AG2 Classic's custom model client over the engine in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from autogen.events.client_events import StreamEvent
from autogen.io.base import IOStream
from autogen.oai.oai_models import (
    ChatCompletion,
    ChatCompletionMessage,
    ChatCompletionMessageToolCall,
    Choice,
    CompletionUsage,
)

from kvcomm_agents.entrypoints.clients.answers import Answer, AnswerReader
from kvcomm_agents.entrypoints.clients.messages import from_openai
from kvcomm_agents.entrypoints.clients.names import in_our_names
from kvcomm_agents.entrypoints.clients.options import to_specs
from kvcomm_agents.entrypoints.clients.settings import CALL_OPTIONS, ClientSettings, make_settings
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.observe.report import RequestReport
from kvcomm_agents.request import Message, Request, TextChunk

if TYPE_CHECKING:
    from kvcomm_agents.engine.engine import Engine

_SETTINGS = frozenset(field.name for field in fields(ClientSettings))
# Of `config_list` entries and calls, and of no meaning to a model in this process.
_IGNORED = frozenset(
    {"model_client_cls", "messages", "tools", "stream", "api_type", "api_key", "api_version", "base_url", "price"}
    | {"tags", "cache_seed", "default_headers", "http_client"}
)


class KVCommModelClient:
    """A model that runs in this process and does not read the same words twice.

        entry = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "model_client_cls": "KVCommModelClient"}
        agent = ConversableAgent("writer", llm_config={"config_list": [entry], "cache_seed": None})
        agent.register_model_client(KVCommModelClient)

    AG2 Classic makes one for each agent; they share the model. `on_report`, given to
    `register_model_client`, is called with the `RequestReport` of every call.

    Args:
        config: the `config_list` entry: fields of `ClientSettings`.
        on_report: called with what was done for each call.

    Raises:
        ConfigError: a setting out of range, or an unknown one.
    """

    def __init__(self, config: Mapping[str, Any], on_report: Callable[[RequestReport], None] | None = None) -> None:
        given = in_our_names(config)
        if unknown := given.keys() - _SETTINGS - CALL_OPTIONS - _IGNORED:
            raise ConfigError(
                f"the config_list entry has {', '.join(sorted(unknown))}, which this client does not know;"
                f" it takes {', '.join(sorted(_SETTINGS))}"
            )
        known = {name: value for name, value in given.items() if name in _SETTINGS and value is not None}
        self._settings = make_settings(ClientSettings, known)
        self._on_report = on_report

    def create(self, params: Mapping[str, Any]) -> ChatCompletion:
        """One answer. With `stream` in the params, its text is also sent to the `IOStream` as it is written.

        Raises:
            ConfigError: an unknown option.
            IncompleteAnswerError: `response_format` asks for JSON, and `max_tokens` or a stop string cut it off.
            RequestError: see `kvcomm_agents.errors`.
        """
        messages = from_openai(params.get("messages", ()))
        given = in_our_names(params)
        options = {name: value for name, value in given.items() if name not in _IGNORED | (_SETTINGS - CALL_OPTIONS)}
        specs = to_specs(() if params.get("tools") is None else params["tools"])
        request = self._settings.request(messages, specs, options, selects=_selects(messages))
        engine = self._settings.engine(params.get("model"))
        answer = self._answer(engine, request, IOStream.get_default() if params.get("stream") else None)
        if self._on_report is not None:
            self._on_report(answer.completion.report)
        return _to_completion(answer.whole(), engine.name)

    def _answer(self, engine: Engine, request: Request, out: Any) -> Answer:
        reader = AnswerReader(request, engine)
        with closing(cast(Any, engine.stream(request))) as events:  # leaving early cancels the request
            for event in events:
                if isinstance(event, TextChunk):
                    text, _ = reader.push(event)
                else:
                    text, _, answer = reader.finish(event)
                if text and out is not None:
                    out.send(StreamEvent(content=text))
        return answer

    def message_retrieval(self, response: ChatCompletion) -> list[Any]:
        """The text, or the message if it calls tools."""
        messages = [choice.message for choice in response.choices]
        return [message if message.tool_calls else message.content or "" for message in messages]

    def cost(self, response: ChatCompletion) -> float:
        """Nothing."""
        return 0.0

    @staticmethod
    def get_usage(response: ChatCompletion) -> dict[str, Any]:
        """Token counts; `prompt_tokens` counts placed ones too."""
        usage = response.usage
        return {
            "prompt_tokens": usage.prompt_tokens if usage else 0,
            "completion_tokens": usage.completion_tokens if usage else 0,
            "total_tokens": usage.total_tokens if usage else 0,
            "cost": 0.0,
            "model": response.model,
        }


def _selects(messages: Sequence[Message]) -> bool:
    """Whether a group chat asks who is to speak next: only then a system message stands behind the conversation.

    Where `role_for_select_speaker_messages` is another, the one who asks still has its name.
    """
    first = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    return any(message.role == "system" or message.name == "checking_agent" for message in messages[first:])


def _to_completion(answer: Answer, model: str) -> ChatCompletion:
    report = answer.completion.report
    calls: list[Any] = [
        ChatCompletionMessageToolCall.model_validate(
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        )
        for call in answer.calls
    ]
    message = ChatCompletionMessage(role="assistant", content=answer.text, tool_calls=calls or None)
    usage = CompletionUsage(
        prompt_tokens=report.prompt_tokens,
        completion_tokens=report.output_tokens,
        total_tokens=report.prompt_tokens + report.output_tokens,
    )
    return ChatCompletion(
        id=f"kvcomm-{uuid4().hex}",
        model=model,
        created=int(time.time()),
        object="chat.completion",
        choices=[Choice(finish_reason=cast(Any, answer.finish_reason), index=0, message=message)],
        usage=usage,
        cost=0.0,
    )
