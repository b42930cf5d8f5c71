"""What a `ChatKVComm` is told, by its constructor and by each call, and the request that this makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from pydantic import AliasChoices, ConfigDict, Field, SecretStr, model_validator

from kvcomm_agents.config import DType, EngineConfig, ReuseConfig, ReuseMode
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.request import Request, SamplingParams

from .identity import find_agent, find_setting
from .messages import to_messages
from .tools import to_constraint, to_specs

if TYPE_CHECKING:
    from kvcomm_agents.engine import Engine

SAMPLING = frozenset(field.name for field in fields(SamplingParams)) - {"stop"}
_TOOL_OPTIONS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format"})
_CALL_OPTIONS = SAMPLING | _TOOL_OPTIONS | {"model", "reuse", "timeout", "kv_agent", "kv_namespace"}
# `stream` is LangChain's own switch, obeyed when a call gets here; answers are always as strict as can be
_IGNORED = frozenset({"stream", "strict", "ls_structured_output_format"})


def engine_for(model: str, config: EngineConfig) -> Engine:
    """The engine that this process shares for a model and config."""
    # Imported at the first call, not with this module: it brings torch, and building a chat model must not.
    from kvcomm_agents.engine import shared_engine

    return shared_engine(model, config)


class ChatSettings(BaseChatModel):
    """The fields of `ChatKVComm`, and what they come to in one call."""

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

    prefer_tools: bool = False
    """For models too small to choose: with tools bound, call one, and after a tool's result speak.

    A `tool_choice` or `parallel_tool_calls` that is given wins."""
    max_string: int = Field(default=1024, ge=1)
    """Characters in a string of a tool call or structured answer for which the schema sets no bound."""

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

    @property
    def engine(self) -> Engine:
        """The engine behind this model, shared in the process; its weights load when they are needed."""
        return engine_for(self.model, self._engine_config())

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
        metadata = run_manager.metadata if run_manager else None
        specs = to_specs(options.get("tools", ()))
        said = to_messages(messages)
        if self.prefer_tools:
            called = bool(said) and said[-1].role == "tool"
            options = {"parallel_tool_calls": False, "tool_choice": "none" if called else "any", **options}
        request = Request(
            messages=said,
            params=self._sampling(stop, options),
            agent=find_agent(options.get("kv_agent", self.kv_agent), metadata),
            namespace=options.get("kv_namespace") or find_setting("kv_namespace", metadata) or self.kv_namespace,
            reuse=reuse,
            timeout_s=options.get("timeout", self.timeout),
            tools=specs,
            constraint=to_constraint(options, specs, self.max_string),
            conversation=find_setting("thread_id", metadata),
        )
        return engine_for(options.get("model", self.model), self._engine_config()), request

    def _sampling(self, stop: Sequence[str] | None, options: Mapping[str, Any]) -> SamplingParams:
        values = {name: options.get(name, getattr(self, name)) for name in SAMPLING}
        values = {name: value for name, value in values.items() if value is not None}
        return SamplingParams(**values, stop=tuple((self.stop if stop is None else stop) or ()))

    def _engine_config(self) -> EngineConfig:
        config = self.engine_config or EngineConfig.from_env()
        overrides: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        return replace(config, **{name: value for name, value in overrides.items() if value is not None})
