"""What a chat client of any framework is told, by its constructor and by each call, and the request this makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from ...config import DType, EngineConfig, ReuseConfig, ReuseMode
from ...errors import ConfigError
from ...request import Message, Request, SamplingParams, ToolSpec
from .options import to_choice, to_constraint

if TYPE_CHECKING:
    from ...engine.engine import Engine

SAMPLING = frozenset(field.name for field in fields(SamplingParams)) - {"stop"}
CALL_OPTIONS = SAMPLING | {
    "stop",
    "timeout",
    "model",
    "reuse",
    "kv_agent",
    "kv_namespace",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
}
"""What a call may say otherwise than the constructor did."""


def engine_for(model: str, config: EngineConfig) -> Engine:
    """The engine that this process shares for a model and config."""
    # Imported at the first call, not with this module: it brings torch, and building a chat client must not.
    from ...engine.engine import shared_engine

    return shared_engine(model, config)


class ClientOptions(TypedDict, total=False):
    """The fields of `ClientSettings` but `model`, as keywords of a client's constructor."""

    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: tuple[str, ...]
    timeout: float | None
    reuse: ReuseMode | None
    kv_namespace: str
    kv_agent: str | None
    exact_selectors: bool
    prefer_tools: bool
    max_string: int
    device: str | None
    dtype: DType | None
    engine_config: EngineConfig | None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of a chat client, the same in every framework.

    Args:
        model: hub id, local folder or GGUF file.
        temperature: 0 is greedy; so is `None`. `top_p`, `top_k`, `min_p`, `repetition_penalty` and
            `seed` as usual.
        max_tokens: most tokens to answer with; `None` allows the rest of the context.
        stop: strings to stop at.
        timeout: seconds that one call may take; `None` waits for ever.
        reuse: how much of a prompt may be placed instead of computed; `None` takes the engine's mode.
        kv_namespace: the wall between tenants: stored KV never crosses it.
        kv_agent: who calls; `None` finds it out from the framework, else from the system message.
        exact_selectors: callers that choose who speaks next are never given approximate KV.
        prefer_tools: for models too small to choose: with tools, call one, and after a result speak.
            A `tool_choice` or `parallel_tool_calls` that is given wins.
        max_string: characters in a string of a call or structured answer for which the schema sets no bound.
        device, dtype: override `engine_config`'s.
        engine_config: `None` reads the `KVCOMM_*` environment variables.

    Raises:
        ConfigError: a value out of range.
    """

    model: str
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    timeout: float | None = None
    reuse: ReuseMode | None = None
    kv_namespace: str = "default"
    kv_agent: str | None = None
    exact_selectors: bool = True
    prefer_tools: bool = False
    max_string: int = 1024
    device: str | None = None
    dtype: DType | None = None
    engine_config: EngineConfig | None = None

    def __post_init__(self) -> None:
        if self.reuse is not None:
            ReuseConfig(mode=self.reuse)  # refuses an unknown mode
        if self.max_string < 1:
            raise ConfigError(f"max_string={self.max_string} must be at least 1 character")
        if isinstance(self.stop, str) or not isinstance(self.stop, tuple):
            object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()))
        self.config()
        self._sampling({})

    def config(self) -> EngineConfig:
        """Of the engine."""
        config = self.engine_config or EngineConfig.from_env()
        overrides: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        return replace(config, **{name: value for name, value in overrides.items() if value is not None})

    def engine(self, model: str | None = None) -> Engine:
        """The engine behind a client, shared in the process; its weights load when they are needed."""
        return engine_for(model or self.model, self.config())

    def request(
        self,
        messages: tuple[Message, ...],
        tools: Sequence[ToolSpec] = (),
        options: Mapping[str, Any] | None = None,
        *,
        agent: str | None = None,
        namespace: str | None = None,
        conversation: str | None = None,
        selects: bool = False,
    ) -> Request:
        """The request of one call.

        Args:
            messages: the conversation.
            tools: the model may call.
            options: some of `CALL_OPTIONS`; `None` as a value leaves the constructor's.
            agent: who calls, as the framework says.
            namespace: whose it is, as the framework says.
            conversation: which thread or run it belongs to.
            selects: the caller chooses who speaks next.

        Raises:
            ConfigError: an unknown option, or a value out of range.
        """
        options = options or {}
        if unknown := options.keys() - CALL_OPTIONS:
            raise ConfigError(
                f"a call does not know {', '.join(sorted(unknown))}; it takes {', '.join(sorted(CALL_OPTIONS))}"
            )
        given = {name: value for name, value in options.items() if value is not None}
        if not tools and to_choice(given.get("tool_choice"), ())[0] == "required":
            raise ConfigError(f"tool_choice={given['tool_choice']!r} asks for a call, and there are no tools")
        reuse = given.get("reuse", self.reuse)
        if reuse is not None:
            ReuseConfig(mode=reuse)  # refuses an unknown mode
        if selects and self.exact_selectors and "reuse" not in given:
            reuse = "exact" if (reuse or self.config().reuse.mode) != "off" else "off"
        if self.prefer_tools:
            called = bool(messages) and messages[-1].role == "tool"
            given = {"parallel_tool_calls": False, "tool_choice": "none" if called else "any", **given}
        return Request(
            messages=messages,
            params=self._sampling(given),
            agent=given.get("kv_agent") or self.kv_agent or agent,
            namespace=given.get("kv_namespace") or namespace or self.kv_namespace,
            reuse=reuse,
            timeout_s=given.get("timeout", self.timeout),
            tools=tuple(tools),
            constraint=to_constraint(given, tools, self.max_string),
            conversation=conversation,
        )

    def _sampling(self, given: Mapping[str, Any]) -> SamplingParams:
        values = {name: given.get(name, getattr(self, name)) for name in SAMPLING}
        stop = given.get("stop", self.stop)
        values = {name: value for name, value in values.items() if value is not None}
        return SamplingParams(**values, stop=(stop,) if isinstance(stop, str) else tuple(stop))
