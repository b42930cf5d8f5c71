"""What a chat client of any framework is told, by its constructor and by each call, and the request this makes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from ...checks import Check, Unfit, check_fields, checked, instance, lenient, optional, path, switch, texts
from ...config import ENGINE, ControlPolicy, DType, EngineConfig, ReuseMode, engine_config
from ...errors import ConfigError
from ...request import REQUEST, Message, Request, SamplingParams, ToolSpec
from ...request_checks import CONSTRAINT
from ...request_checks import SAMPLING as SAMPLING_CHECKS
from .names import in_our_names, seconds
from .options import to_choice, to_constraint

if TYPE_CHECKING:
    from ...engine.engine import Engine


def _stops(value: Any) -> tuple[str, ...]:
    if isinstance(value, Iterator):  # settings and bound options are read again by every call
        raise Unfit("a text, or a list or tuple of texts")
    return () if value is None else texts(value)


SAMPLING = frozenset(field.name for field in fields(SamplingParams)) - {"stop"}
# Settings come from environments and YAML too.
_CHECKS: dict[str, Check] = {
    **{name: lenient(check) for name, check in SAMPLING_CHECKS.items()},
    "temperature": optional(lenient(SAMPLING_CHECKS["temperature"])),
    "model": path,
    "timeout": optional(seconds, "to wait for ever"),
    "stop": _stops,
    "reuse": REQUEST["reuse"],
    "kv_namespace": REQUEST["namespace"],
    "kv_agent": REQUEST["agent"],
    "exact_selectors": lenient(switch),
    "prefer_tools": lenient(switch),
    "max_string": lenient(CONSTRAINT["max_string"]),
    "device": optional(ENGINE["device"]),
    "dtype": optional(ENGINE["dtype"]),
    "control_strings": optional(ENGINE["control_strings"]),
    "engine_config": optional(engine_config, "for the KVCOMM_* environment variables"),
}
_CALL_CHECKS: dict[str, Check] = {
    **{name: _CHECKS[name] for name in [*SAMPLING, "stop", "timeout", "model", "reuse", "kv_agent", "kv_namespace"]},
    "tool_choice": lambda value: value,
    "parallel_tool_calls": lenient(switch),
    "response_format": lambda value: value,
}
CALL_OPTIONS = frozenset(_CALL_CHECKS)
"""What a call may say otherwise than the constructor did."""

S = TypeVar("S", bound="ClientSettings")


def engine_for(model: str, config: EngineConfig) -> Engine:
    """The engine that this process shares for a model and config."""
    # Imported at the first call, not with this module: it brings torch, and building a chat client must not.
    from ...engine.engine import shared_engine

    return shared_engine(model, config)


async def aengine_for(model: str, config: EngineConfig) -> Engine:
    """As `engine_for`, without a moment of waiting in the event loop: what is not there yet is made in a thread."""
    find = getattr(sys.modules.get("kvcomm_agents.engine.engine"), "find_engine", None)
    engine: Engine | None = find(model, config) if find is not None else None
    return await asyncio.to_thread(engine_for, model, config) if engine is None else engine


class ClientOptions(TypedDict, total=False):
    """The fields of `ClientSettings` but `model`, as keywords of a client's constructor."""

    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    timeout: Any
    reuse: ReuseMode | None
    kv_namespace: str
    kv_agent: str | None
    exact_selectors: bool
    prefer_tools: bool
    max_string: int
    device: str | None
    dtype: DType | None
    control_strings: ControlPolicy | None
    engine_config: EngineConfig | Mapping[str, Any] | None


class ClientKeywords(ClientOptions, total=False):
    """`ClientOptions`, and what other clients call some of them."""

    max_completion_tokens: int | None
    request_timeout: Any
    stream_usage: bool | None
    user: str | None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of a chat client, the same in every framework.

    Args:
        model: hub id, local folder or GGUF file.
        temperature: 0 is greedy; so is `None`. `top_p`, `top_k`, `min_p`, `repetition_penalty` and
            `seed` as usual.
        max_tokens: most tokens to answer with; `None` allows the rest of the context.
        stop: strings to stop at.
        timeout: seconds that one call may take, in any form of `names.seconds`; `None` waits for ever.
        reuse: how much of a prompt may be placed instead of computed; `None` takes the engine's mode.
        kv_namespace: the wall between tenants: stored KV never crosses it.
        kv_agent: who calls; `None` finds it out from the framework, else from the system message.
        exact_selectors: callers that choose who speaks next are never given approximate KV.
        prefer_tools: for models too small to choose: with tools, call one, and after a result speak.
            A `tool_choice` or `parallel_tool_calls` that is given wins.
        max_string: characters in a string of a call or structured answer for which the schema sets no bound.
        device, dtype, control_strings: override `engine_config`'s.
        engine_config: `None` reads the `KVCOMM_*` environment variables; a dict holds its fields.

    Raises:
        ConfigError: a value of another type, or out of range.
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
    control_strings: ControlPolicy | None = None
    engine_config: EngineConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS)
        self.config()

    def config(self) -> EngineConfig:
        """Of the engine."""
        config = self.engine_config or EngineConfig.from_env()
        overrides: dict[str, Any] = {
            "device": self.device,
            "dtype": self.dtype,
            "control_strings": self.control_strings,
        }
        return replace(config, **{name: value for name, value in overrides.items() if value is not None})

    def engine(self, model: str | None = None) -> Engine:
        """The engine behind a client, shared in the process; its weights load when they are needed."""
        return engine_for(self._model(model), self.config())

    async def aengine(self, model: str | None = None) -> Engine:
        """As `engine`, for use in an event loop."""
        return await aengine_for(self._model(model), self.config())

    def _model(self, model: str | None) -> str:
        return self.model if model is None else str(checked("model", model, path))

    def options(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Options of a call under our names and in their plain types, without those that are `None`.

        Raises:
            ConfigError: an unknown option, or a value of another type or out of range.
        """
        named = in_our_names(checked("options", {} if given is None else given, instance(Mapping)))
        if unknown := named.keys() - CALL_OPTIONS:
            raise ConfigError(
                f"a call does not know {', '.join(sorted(map(str, unknown)))};"
                f" it takes {', '.join(sorted(CALL_OPTIONS))}"
            )
        return {name: checked(name, value, _CALL_CHECKS[name]) for name, value in named.items() if value is not None}

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
            ConfigError: as `options`, or a namespace that is none.
        """
        given = self.options(options)
        if namespace is not None:
            namespace = checked("kv_namespace", namespace, REQUEST["namespace"])
        if not tools and to_choice(given.get("tool_choice"), ())[0] == "required":
            raise ConfigError(f"tool_choice={given['tool_choice']!r} asks for a call, and there are no tools")
        reuse = given.get("reuse", self.reuse)
        if selects and self.exact_selectors and "reuse" not in given:
            reuse = "exact" if (reuse or self.config().reuse.mode) != "off" else "off"
        if self.prefer_tools:
            called = bool(messages) and messages[-1].role == "tool"
            given = {"parallel_tool_calls": False, "tool_choice": "none" if called else "any", **given}
        return Request(
            messages=messages,
            params=self._sampling(given),
            agent=given.get("kv_agent") or self.kv_agent or agent or None,
            namespace=given.get("kv_namespace") or namespace or self.kv_namespace,
            reuse=reuse,
            timeout_s=given.get("timeout", self.timeout),
            tools=tuple(tools),
            constraint=to_constraint(given, tools, self.max_string),
            conversation=conversation,
        )

    def _sampling(self, given: Mapping[str, Any]) -> SamplingParams:
        values = {name: given.get(name, getattr(self, name)) for name in [*SAMPLING, "stop"]}
        return SamplingParams(**{name: value for name, value in values.items() if value is not None})


def make_settings(kind: type[S], given: Mapping[str, Any]) -> S:
    """Settings of keywords as an app gave them to a client's constructor.

    Args:
        kind: `ClientSettings` or a subclass.
        given: its fields, under our names or others'.

    Raises:
        ConfigError: an unknown one, no model, or a value of another type or out of range.
    """
    named, known = in_our_names(given), fields(kind)
    if unknown := named.keys() - {field.name for field in known}:
        takes = ", ".join(sorted(field.name for field in known))
        raise ConfigError(f"this client does not know {', '.join(sorted(map(str, unknown)))}; it takes {takes}")
    for field in known:
        if field.default is MISSING and field.default_factory is MISSING and field.name not in named:
            raise ConfigError(f"{field.name} is missing; give a hub id, a local folder or a GGUF file")
    return kind(**named)
