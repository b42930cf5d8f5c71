"""`ChatKVComm`: a LangChain chat model over the engine in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self
from warnings import warn

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import BaseTool
from pydantic import AliasChoices, ConfigDict, Field, SecretStr, model_validator

from kvcomm_agents._version import __version__
from kvcomm_agents.config import DType, EngineConfig, ReuseConfig, ReuseMode
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.request import Completion, Request, SamplingParams, TextChunk

from .identity import find_agent
from .messages import to_messages, to_response_metadata, to_usage

if TYPE_CHECKING:
    from kvcomm_agents.engine import Engine

_SAMPLING = frozenset(field.name for field in fields(SamplingParams)) - {"stop"}
_CALL_OPTIONS = _SAMPLING | {"model", "reuse", "timeout", "kv_agent", "kv_namespace"}
_IGNORED = frozenset({"stream"})  # LangChain's own switch; it has been obeyed when a call gets here


def _shared_engine(model: str, config: EngineConfig) -> Engine:
    # Imported at the first call, not with this module: it brings torch, and building a chat model must not.
    from kvcomm_agents.engine import shared_engine

    return shared_engine(model, config)


class ChatKVComm(BaseChatModel):
    """A chat model that runs in this process and does not read the same words twice.

    Swap it in for the model of a LangGraph app; nothing else changes:

        llm = ChatKVComm(model="HuggingFaceTB/SmolLM2-135M-Instruct", temperature=0)
        reply = llm.invoke("Why is the sky blue?")
        reply.usage_metadata["input_token_details"]["cache_read"]  # prompt tokens not computed again
        reply.response_metadata["kvcomm"]  # what was done, in tokens and seconds

    Building one is instant. Weights load with the first call, once per process, however many
    `ChatKVComm` share them. Every field from `temperature` to `kv_agent` can also be given per call,
    by `llm.bind(...)` or as a keyword of `invoke` and its kin, and `model` too.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str = Field(validation_alias=AliasChoices("model", "model_name"))
    """Local folder, GGUF file or hub id."""
    temperature: float | None = None
    """0 is greedy; so is `None`."""
    max_tokens: int | None = None
    """Most tokens to answer with; `None` allows the rest of the context."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    """Strings to stop at. A `stop` given at the call replaces them."""
    timeout: float | None = None
    """Seconds that one call may take; `None` waits for ever."""

    reuse: ReuseMode | None = None
    """How much of a prompt may be placed instead of computed; `None` takes the engine's mode."""
    kv_namespace: str = "default"
    """The wall between tenants: stored KV never crosses it."""
    kv_agent: str | None = None
    """Who calls. `None` finds it out from LangGraph, else from the system message."""

    device: str | None = None
    """Overrides `engine_config.device`."""
    dtype: DType | None = None
    """Overrides `engine_config.dtype`."""
    engine_config: EngineConfig | None = None
    """`None` reads the `KVCOMM_*` environment variables."""

    streaming: bool = False
    """Makes `invoke` stream to callbacks; `stream` always streams."""
    max_retries: int | None = None
    """Taken so that constructor calls written for other models work. A local call is not retried."""
    api_key: SecretStr | None = None
    """Taken for the same reason, and not used."""

    @model_validator(mode="after")
    def _check_now(self) -> Self:
        """Wrong settings fail here, not at the first call."""
        self._engine_config()
        self._sampling(None, {})
        return self

    @model_validator(mode="after")
    def _set_kvcomm_version(self) -> Self:
        if hasattr(self, "_add_version"):  # langchain-core 1.4 has no such method
            self._add_version("kvcomm-agents", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "kvcomm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # Part of the key of LangChain's own response cache, hence the namespace: it is a wall there too.
        names = ["model", *sorted(_SAMPLING), "stop", "reuse", "kv_namespace", "kv_agent", "device", "dtype"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self.stop if stop is None else stop, **kwargs)
        params["ls_provider"] = "kvcomm"
        return params

    @property
    def engine(self) -> Engine:
        """The engine behind this model, shared in the process; its weights load when they are needed."""
        return _shared_engine(self.model, self._engine_config())

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of the tokens in a text, by the model's own tokenizer and without special tokens."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self.engine.tokenizer.encode(text, add_special_tokens=False))

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Length in tokens of the prompt that the model's chat template makes of these messages."""
        if tools is not None:
            warn("tools are not counted", stacklevel=2)
        return self.engine.count_tokens(to_messages(messages))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, request = self._prepare(messages, stop, run_manager, kwargs)
        return _result(engine.generate(request), engine.name)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, request = self._prepare(messages, stop, run_manager, kwargs)
        return _result(await engine.agenerate(request), engine.name)

    # Neither of the two below calls `run_manager.on_llm_new_token`: the base class does, for every chunk.
    # Both close the engine's stream themselves, because that is what cancels the request.

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine, request = self._prepare(messages, stop, run_manager, kwargs)
        events = engine.stream(request)
        try:
            for event in events:
                yield _chunk(event, engine.name)
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine, request = self._prepare(messages, stop, run_manager, kwargs)
        events = engine.astream(request)
        try:
            async for event in events:
                yield _chunk(event, engine.name)
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()

    def _prepare(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> tuple[Engine, Request]:
        """The engine and the request of one call. `None` in a keyword leaves the constructor's value."""
        unknown = kwargs.keys() - _CALL_OPTIONS - _IGNORED
        if unknown:
            raise ConfigError(
                f"ChatKVComm does not know {', '.join(sorted(unknown))};"
                f" a call takes {', '.join(sorted(_CALL_OPTIONS))}"
            )
        options = {name: value for name, value in kwargs.items() if value is not None}
        reuse = options.get("reuse", self.reuse)
        if reuse is not None:
            ReuseConfig(mode=reuse)  # refuses an unknown mode
        request = Request(
            messages=to_messages(messages),
            params=self._sampling(stop, options),
            agent=find_agent(options.get("kv_agent", self.kv_agent), run_manager.metadata if run_manager else None),
            namespace=options.get("kv_namespace", self.kv_namespace),
            reuse=reuse,
            timeout_s=options.get("timeout", self.timeout),
        )
        return _shared_engine(options.get("model", self.model), self._engine_config()), request

    def _sampling(self, stop: Sequence[str] | None, options: Mapping[str, Any]) -> SamplingParams:
        values = {name: options.get(name, getattr(self, name)) for name in _SAMPLING}
        values = {name: value for name, value in values.items() if value is not None}
        return SamplingParams(**values, stop=tuple((self.stop if stop is None else stop) or ()))

    def _engine_config(self) -> EngineConfig:
        config = self.engine_config or EngineConfig.from_env()
        overrides: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        return replace(config, **{name: value for name, value in overrides.items() if value is not None})


def _result(completion: Completion, model: str) -> ChatResult:
    message = AIMessage(
        content=completion.text,
        usage_metadata=to_usage(completion),
        response_metadata=to_response_metadata(completion, model),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunk(event: TextChunk | Completion, model: str) -> ChatGenerationChunk:
    """A piece of text; or the end, which carries all counts, so that merged chunks count nothing twice."""
    if isinstance(event, TextChunk):
        return ChatGenerationChunk(message=AIMessageChunk(content=event.text))
    message = AIMessageChunk(
        content="",
        usage_metadata=to_usage(event),
        response_metadata=to_response_metadata(event, model),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)
