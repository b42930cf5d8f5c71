"""What a `ChatKVComm` is told, by its constructor and by each call, and the request that this makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from pydantic import AliasChoices, ConfigDict, Field, SecretStr, ValidationError, model_validator

from kvcomm_agents.checks import shown
from kvcomm_agents.config import ControlPolicy, DType, EngineConfig, ReuseMode
from kvcomm_agents.entrypoints.clients.names import in_our_names
from kvcomm_agents.entrypoints.clients.settings import ClientSettings
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.request import Request

from .identity import find_agent, find_namespace, find_setting
from .messages import to_messages
from .tools import to_response_format, to_specs

if TYPE_CHECKING:
    from kvcomm_agents.engine.engine import Engine

_SHARED = tuple(field.name for field in fields(ClientSettings))
# `stream` is LangChain's own switch, obeyed when a call gets here; answers are always as strict as can be
_IGNORED = frozenset({"stream", "strict", "ls_structured_output_format"})


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
    """Seconds that one call may take; `None` waits for ever. Text, `(connect, read)` and `httpx.Timeout` are taken."""

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
    control_strings: ControlPolicy | None = None
    """Overrides `engine_config.control_strings`."""
    engine_config: EngineConfig | None = None
    """`None` reads the `KVCOMM_*` environment variables."""

    streaming: bool = False
    """Makes `invoke` stream to callbacks; `stream` always streams."""
    max_retries: int | None = None
    """Taken so that constructor calls written for other models work. A local call is not retried."""
    api_key: SecretStr | None = None
    """Taken for the same reason, and not used."""

    def __init__(self, **settings: Any) -> None:
        """Raises `ConfigError` for a setting that is unknown, of another type or out of range."""
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _as_config_error(error, type(self)) from error

    @model_validator(mode="before")
    @classmethod
    def _check_now(cls, given: Any) -> Any:
        """Wrong settings fail here, not at the first call, and as those of the other clients do."""
        if not isinstance(given, Mapping):
            return given
        named = in_our_names(given)
        if "model" not in named:
            return named  # pydantic says so
        shared = {name: value for name, value in named.items() if name in _SHARED and name in cls.model_fields}
        settings = ClientSettings(**shared)
        plain = {name: getattr(settings, name) for name in shared}
        if plain.get("stop") is not None:
            plain["stop"] = None if shared["stop"] is None else list(plain["stop"])
        return {**named, **plain}

    @property
    def engine(self) -> Engine:
        """The engine behind this model, shared in the process; its weights load when they are needed."""
        return self._settings().engine()

    def _request(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> Request:
        """The request of one call. `None` in a keyword leaves the constructor's value."""
        options = {name: value for name, value in kwargs.items() if name not in _IGNORED}
        metadata = run_manager.metadata if run_manager else None
        tools = options.pop("tools", None)
        specs = to_specs(() if tools is None else tools)
        options["response_format"] = to_response_format(options.get("response_format"))
        if stop is not None:
            options["stop"] = stop
        return self._settings().request(
            to_messages(messages),
            specs,
            options,
            agent=find_agent(None, metadata),
            namespace=find_namespace(metadata),
            conversation=find_setting("thread_id", metadata),
        )

    def _prepare(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> tuple[Engine, Request]:
        """The engine and the request of one call."""
        request = self._request(messages, stop, run_manager, kwargs)
        return self._settings().engine(kwargs.get("model")), request

    async def _aprepare(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: AsyncCallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> tuple[Engine, Request]:
        """As `_prepare`, in an event loop: nothing is imported or loaded in it."""
        request = self._request(messages, stop, run_manager, kwargs)
        return await self._settings().aengine(kwargs.get("model")), request

    def _settings(self) -> ClientSettings:
        return ClientSettings(**{name: getattr(self, name) for name in _SHARED if hasattr(self, name)})


def _as_config_error(error: ValidationError, kind: type[ChatSettings]) -> ConfigError:
    """What pydantic says of settings, in this package's own error."""
    told = []
    for detail in error.errors():
        name = ".".join(map(str, detail["loc"]))
        if isinstance(ours := detail.get("ctx", {}).get("error"), ConfigError):
            return ours
        if detail["type"] == "extra_forbidden":
            told.append(f"{name} is no setting; it takes {', '.join(sorted(kind.model_fields))}")
        else:
            told.append(f"{name}={shown(detail['input'])}: {detail['msg']}")
    return ConfigError(f"{kind.__name__}: {'; '.join(told)}")
