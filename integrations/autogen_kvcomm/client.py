"""`KVCommChatCompletionClient`: AutoGen's model client over the engine in this process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from autogen_core import EVENT_LOGGER_NAME, CancellationToken, Component
from autogen_core.logging import LLMCallEvent, LLMStreamEndEvent, LLMStreamStartEvent
from autogen_core.models import (
    ChatCompletionClient,
    CreateResult,
    LLMMessage,
    ModelFamily,
    ModelInfo,
    RequestUsage,
)
from autogen_core.tools import Tool, ToolSchema
from pydantic import BaseModel, RootModel
from typing_extensions import Unpack

from kvcomm_agents.checks import check_fields, checked, instance
from kvcomm_agents.entrypoints.clients.answers import Answer, aread_answer, stream_answer
from kvcomm_agents.entrypoints.clients.settings import ClientKeywords, ClientSettings, make_settings
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.extras import has_llguidance
from kvcomm_agents.json_values import json_object
from kvcomm_agents.observe.report import RequestReport
from kvcomm_agents.request import Request

from .identity import find_caller
from .messages import loggable, to_messages, to_openai, to_response_format, to_result, to_tools

if TYPE_CHECKING:
    from kvcomm_agents.engine.engine import Engine

event_logger = logging.getLogger(EVENT_LOGGER_NAME)

ToolChoice = Tool | Literal["auto", "required", "none"]
T = TypeVar("T")


class AutoGenOptions(ClientKeywords, total=False):
    """Keywords of the constructor but `model`."""

    schemas: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class AutoGenSettings(ClientSettings):
    """`ClientSettings`, and what only AutoGen needs.

    Args:
        schemas: JSON schemas that stand in for those of pydantic classes given as `json_output`, by the
            classes' names. `LedgerEntry` with the participants' names as an `enum` keeps a small model
            from inventing one in MagenticOne's ledger.
    """

    schemas: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ClientSettings.__post_init__(self)
        check_fields(self, {"schemas": json_object})


class KVCommClientConfig(RootModel[AutoGenSettings]):
    """The client as a component's config: the fields of `AutoGenSettings`."""


class KVCommChatCompletionClient(ChatCompletionClient, Component[KVCommClientConfig]):
    """A model that runs in this process and does not read the same words twice.

    Swap it in for the client of an AutoGen team; nothing else changes:

        client = KVCommChatCompletionClient(model="HuggingFaceTB/SmolLM2-135M-Instruct", temperature=0)
        team = RoundRobinGroupChat([AssistantAgent("writer", client), AssistantAgent("editor", client)], max_turns=4)

    Building one is instant. Weights load with the first call, once per process. Any of `CALL_OPTIONS`
    (see `kvcomm_agents.entrypoints.clients.settings`) can be given per call, in `extra_create_args`.

    Args:
        model: hub id, local folder or GGUF file.
        settings: see `AutoGenSettings`.

    Raises:
        ConfigError: a setting out of range.
    """

    component_type = "model"
    component_config_schema = KVCommClientConfig
    component_provider_override = "autogen_kvcomm.KVCommChatCompletionClient"

    def __init__(self, model: str, **settings: Unpack[AutoGenOptions]) -> None:
        self._settings = make_settings(AutoGenSettings, {"model": model, **settings})
        self._usage = RequestUsage(prompt_tokens=0, completion_tokens=0)
        self._reports: deque[RequestReport] = deque(maxlen=1000)

    @property
    def last_report(self) -> RequestReport | None:
        """What was done for the call that this client finished last: AutoGen's usage has no room for it."""
        return self._reports[-1] if self._reports else None

    @property
    def reports(self) -> tuple[RequestReport, ...]:
        """Reports of this client's last 1000 calls, oldest first."""
        return tuple(self._reports)

    async def create(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = (),
        tool_choice: ToolChoice = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
    ) -> CreateResult:
        """The whole answer.

        Args:
            messages: the conversation.
            tools: that may be called. Needs the extra `tools`, as `json_output` does.
            tool_choice: `auto`, `required`, `none`, or the one tool to call.
            json_output: `True` for any JSON object, a pydantic class for one of its schema.
            extra_create_args: some of `CALL_OPTIONS`.
            cancellation_token: stops the model within one token.

        Raises:
            ConfigError: an option, choice or format that is none.
            IncompleteAnswerError: `json_output` was asked for, and `max_tokens` or a stop string cut it off.
            RequestError: see `kvcomm_agents.errors`.
            asyncio.CancelledError: the token was cancelled.
        """
        request, engine = await self._prepare(messages, tools, tool_choice, json_output, extra_create_args)
        completion = await _Cancellable(cancellation_token).wait(engine.agenerate(request))
        said = to_openai(request.messages)
        return self._finished(await aread_answer(completion, request, engine), LLMCallEvent, messages=said)

    async def create_stream(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = (),
        tool_choice: ToolChoice = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
    ) -> AsyncGenerator[str | CreateResult, None]:
        """Text as it is written, then the `CreateResult`, which holds the calls. Arguments and errors as `create`."""
        request, engine = await self._prepare(messages, tools, tool_choice, json_output, extra_create_args)
        event_logger.info(LLMStreamStartEvent(messages=to_openai(request.messages)))
        cancellable = _Cancellable(cancellation_token)
        async with aclosing(stream_answer(request, engine)) as pieces:
            while isinstance(piece := await cancellable.wait(anext(pieces)), str):
                yield piece
        yield self._finished(piece, LLMStreamEndEvent)

    async def close(self) -> None:
        """Nothing to do: the engine is the process's, and other clients may use it."""

    def actual_usage(self) -> RequestUsage:
        """Tokens of all finished calls: whole prompts, placed tokens among them (see `reports`), and answers."""
        return RequestUsage(self._usage.prompt_tokens, self._usage.completion_tokens)

    def total_usage(self) -> RequestUsage:
        """As `actual_usage`: no answer is ever given out again."""
        return self.actual_usage()

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        """Length of the prompt that the model's chat template makes of these messages and tools."""
        return self._settings.engine().count_tokens(to_messages(messages), to_tools(tools))

    def remaining_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        """Tokens left in the context behind that prompt; negative if it does not fit. Loads the model."""
        return self._settings.engine().max_context - self.count_tokens(messages, tools=tools)

    @property
    def model_info(self) -> ModelInfo:
        """What the model can do. Calls and JSON need llguidance (extra `tools`)."""
        constrained = has_llguidance()
        return ModelInfo(
            vision=False,
            function_calling=constrained,
            json_output=constrained,
            structured_output=constrained,
            family=ModelFamily.UNKNOWN,
            multiple_system_messages=True,
        )

    @property
    def capabilities(self) -> ModelInfo:
        """As `model_info`, under AutoGen's older name."""
        return self.model_info

    def _to_config(self) -> KVCommClientConfig:
        return KVCommClientConfig(self._settings)

    @classmethod
    def _from_config(cls, config: KVCommClientConfig) -> Self:
        return cls(**{name: getattr(config.root, name) for name in AutoGenSettings.__dataclass_fields__})

    async def _prepare(
        self,
        messages: Sequence[LLMMessage],
        tools: Sequence[Tool | ToolSchema],
        tool_choice: ToolChoice,
        json_output: bool | type[BaseModel] | None,
        extra: Mapping[str, Any] | None,
    ) -> tuple[Request, Engine]:
        options = dict(checked("extra_create_args", {} if extra is None else extra, instance(Mapping)))
        said = to_messages(messages)
        response_format = to_response_format(json_output, said, self._settings.schemas)
        if response_format is not None:
            if options.get("response_format") is not None:
                raise ConfigError("json_output and response_format both say what the answer is; give one of them")
            options["response_format"] = response_format
        if tool_choice != "auto":  # the default of every agent, so it is no choice
            options["tool_choice"] = tool_choice.name if isinstance(tool_choice, Tool) else tool_choice
        caller = find_caller()
        request = self._settings.request(
            said,
            to_tools(tools),
            options,
            agent=caller.agent,
            conversation=caller.conversation,
            selects=caller.selects,
        )
        return request, await self._settings.aengine(options.get("model"))

    def _finished(self, answer: Answer, event: type[LLMCallEvent | LLMStreamEndEvent], **more: Any) -> CreateResult:
        """Count an answer, and log it as that kind of event.

        Raises:
            IncompleteAnswerError: it was to be JSON, and was cut off.
        """
        result, report = to_result(answer), answer.completion.report
        self._reports.append(report)
        usage: dict[str, Any] = {"prompt_tokens": report.prompt_tokens, "completion_tokens": report.output_tokens}
        self._usage = RequestUsage(**{name: getattr(self._usage, name) + count for name, count in usage.items()})
        event_logger.info(event(response=loggable(result), kvcomm=report.as_dict(), **usage, **more))
        answer.whole()
        return result


class _Cancellable:
    """Waits for one thing after the other, until a token is cancelled: from any thread, also before the first."""

    def __init__(self, token: CancellationToken | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[Any] | None = None
        self._cancelled = False
        if token is not None:
            token.add_callback(self._tell)

    async def wait(self, what: Awaitable[T]) -> T:
        self._waiting = task = asyncio.ensure_future(what)
        if self._cancelled:
            task.cancel()
        try:
            return await task
        finally:
            self._waiting = None  # the token may live long

    def _tell(self) -> None:
        self._cancelled = True
        if self._waiting is not None:  # else the next wait sees it, or there is none, and perhaps no loop
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
