"""What a user can set: frozen, validated, readable from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from . import checks
from .checks import check_fields, checked

DType = Literal["auto", "float32", "bfloat16", "float16"]
ReuseMode = Literal["exact", "corrected", "auto", "off"]
ControlPolicy = Literal["text", "tokens"]
"""Whether control strings of the chat template in messages are text, or become control tokens as elsewhere."""

MiB = 1 << 20
GiB = 1 << 30


def _names(value: Any) -> frozenset[str]:
    return frozenset(checks.texts(tuple(value) if isinstance(value, Set) else value))


def _torch_word(check: checks.Check) -> checks.Check:
    """A check that also takes torch's own object of that name: `torch.float32`, `torch.device("cuda:0")`."""
    return lambda value: check(
        str(value).removeprefix("torch.") if type(value).__module__.partition(".")[0] == "torch" else value
    )


_REUSE = {
    "mode": checks.one_of(get_args(ReuseMode)),
    "max_divergence": checks.number(0, want="a positive number; for no divergence at all use mode='exact'", above=True),
    "exact_agents": _names,
    "exact_judges": checks.switch,
    "audit_share": checks.optional(checks.number(0, 1, "a number in [0, 1]"), "for the ledger to decide"),
    "min_prefix": checks.whole(1, unit="token"),
    "min_span": checks.whole(4, unit="tokens"),
    "min_placed": checks.whole(1, unit="token"),
    "pack_tokens": checks.whole(16, unit="tokens"),
    "pack_positions": checks.one_of(("reset", "running")),
    "span_bytes": checks.optional(checks.whole(0, unit="bytes"), "for a part of memory_bytes"),
    "anchor_bytes": checks.optional(checks.whole(0, unit="bytes"), "for a part of memory_bytes"),
    "novel_leverage": checks.number(1, want="a number, at least 1 (the usual)"),
    "novel_weight": checks.number(1, want="a number, at least 1"),
    "max_divergence_quantile": checks.optional(
        checks.number(0.5, 0.999, "a number from 0.5 to 0.999"), "to bound the mean"
    ),
    "calibration": checks.optional(checks.path),
    "hidden_share": checks.optional(checks.number(0, 1, "a number in [0, 1]"), "for a twentieth, or a tenth if idle"),
}


@dataclass(frozen=True, slots=True)
class ReuseConfig:
    """How much of a prompt may be placed instead of computed.

    Args:
        mode: `off` computes everything; `exact` places only KV that equals a dense prefill's.
            `auto` also places corrected KV, as much as the guard allows; `corrected` places all
            it can, whatever the guard expects.
        max_divergence: the bound the guard keeps: mean KL per produced token over an app's reused calls, in nats.
        max_divergence_quantile: the bound holds for this share of calls (0.9, say) instead of for their mean.
        calibration: a file that `Calibration.save` wrote; `None` takes what is shipped for the model, or a safe
            default.
        exact_agents: agents that are never given approximate KV (judges, voters, selectors).
        exact_judges: treat every prompt that holds competing answers as a judge's.
        audit_share: share of reused requests that are also prefilled exactly in idle time. `None` lets the
            ledger decide: hidden work stays within `hidden_share` of what reuse has saved. A number is obeyed
            whatever that costs: 1 measures every reused request, 0 none.
        hidden_share: hidden work may cost so much of what reuse has saved, and one prompt at the beginning. `None`
            is a twentieth, or a tenth on a machine that is idle most of the time.
        min_prefix: tokens; a shorter prefix hit is not worth the copy and is computed.
        min_span: tokens; shorter texts are not recognised as spans.
        min_placed: tokens; spans of which fewer stand in a prompt are computed: they cost little, and
            an answer of a few words bears more of what follows than its length says.
        pack_tokens: computed in one piece of a warm-up, at most: what a request may have to wait for.
        pack_positions: of warmed texts: `reset` gives each the positions from 1 on, `running` those it has
            in its pack.
        span_bytes, anchor_bytes: these two parts of `EngineConfig.memory_bytes`, donor KV and anchors of all
            namespaces together, said outright.
        novel_leverage: leverage from which on an example counts as novel.
        novel_weight: how much a novel example may count, in ordinary ones.

    Raises:
        ConfigError: a field of another type, or out of range.
    """

    mode: ReuseMode = "auto"
    max_divergence: float = 0.02
    exact_agents: frozenset[str] = frozenset()
    exact_judges: bool = True
    audit_share: float | None = None
    min_prefix: int = 8
    min_span: int = 12
    min_placed: int = 24
    pack_tokens: int = 256
    pack_positions: Literal["reset", "running"] = "reset"
    span_bytes: int | None = None
    anchor_bytes: int | None = None
    novel_leverage: float = 3.0
    novel_weight: float = 8.0
    max_divergence_quantile: float | None = None
    calibration: str | None = None
    hidden_share: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, _REUSE)

    @property
    def learns(self) -> bool:
        """Whether spans, anchors and audits are kept at all."""
        return self.mode in ("auto", "corrected")


ENGINE = {
    "device": _torch_word(checks.identity),
    "dtype": _torch_word(checks.one_of(get_args(DType))),
    "device_cache_bytes": checks.optional(checks.whole(0, unit="bytes"), "for a part of memory_bytes"),
    "host_cache_bytes": checks.optional(checks.whole(0, unit="bytes"), "for a part of memory_bytes"),
    "max_context": checks.optional(checks.whole(2, unit="tokens"), "for the model's own limit"),
    "max_concurrent": checks.whole(1, unit="request"),
    "prefill_chunk": checks.whole(1, unit="token"),
    "cuda_graphs": checks.switch,
    "embedder": checks.optional(checks.path),
    "memory_folder": checks.optional(checks.path),
    "report_file": checks.optional(checks.path),
    "reuse": checks.instance(ReuseConfig),
    "control_strings": checks.one_of(get_args(ControlPolicy)),
    "memory_bytes": checks.optional(checks.whole(0, unit="bytes"), "for three tenths of what is free"),
}
"""What the fields of `EngineConfig` must be."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Where a model runs, and how much memory its stored KV may take.

    Args:
        device: `auto` (CUDA if there is one, else CPU) or any torch device string.
        dtype: `auto` is the model's own on CUDA, float32 on CPU.
        memory_bytes: what the engine may keep beside weights and running contexts: stored prefixes, donors of
            spans, maps, anchors, kept distributions, spare caches and waiting work, of all namespaces together.
            `None` takes three tenths of what is free on the model's device, and for stored prefixes as much of
            the host's, when the engine is made.
        device_cache_bytes, host_cache_bytes: one part of that, stored prefixes, said outright: on the model's
            device and in host memory. On a CPU model the two add up to one host tier.
        max_context: tokens; `None` takes the model's own limit.
        max_concurrent: requests served together; the rest wait in the queue.
        prefill_chunk: prompt tokens computed at once while other requests wait for their next token:
            the longer, the later these get it, and the sooner new requests get their first.
        cuda_graphs: whether passes over few tokens are recorded and played again, where CUDA and Triton are.
        embedder: a sentence-transformers model that keys anchors; `None` takes the embedded default
            if it is installed, else the model's own mean token embedding.
        memory_folder: where anchors, maps and audits are kept between processes; `None` keeps nothing.
        report_file: a report of every request is appended to it, for `kvcomm report`; `None` writes none.
        reuse: see `ReuseConfig`.
        control_strings: `text` makes the chat template's control strings (`<|im_end|>`) plain text where they stand
            in messages, names, tool results or arguments, whoever wrote them; `tokens` makes control tokens of
            them there too, as transformers and other servers do.

    Raises:
        ConfigError: a field of another type, or out of range.
    """

    device: str = "auto"
    dtype: DType = "auto"
    device_cache_bytes: int | None = None
    host_cache_bytes: int | None = None
    max_context: int | None = None
    max_concurrent: int = 16
    prefill_chunk: int = 128
    cuda_graphs: bool = True
    embedder: str | None = None
    memory_folder: str | None = None
    report_file: str | None = None
    reuse: ReuseConfig = ReuseConfig()
    control_strings: ControlPolicy = "text"
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, ENGINE)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> EngineConfig:
        """Defaults, overridden by `KVCOMM_DEVICE`, `KVCOMM_MAX_CONTEXT`, ... and `KVCOMM_REUSE` (the mode).

        Raises:
            ConfigError: a variable holds no valid value; the message names the variable.
        """
        config = cls()
        for field in fields(cls):
            name = f"KVCOMM_{field.name.upper()}"
            text = env.get(name)
            if text is None:
                continue
            if field.name == "reuse":
                value: Any = checked(name, text, lambda mode: ReuseConfig(mode=_REUSE["mode"](mode)))
            else:
                value = checked(name, text, checks.lenient(ENGINE[field.name]))
            config = replace(config, **{field.name: value})
        return config


def engine_config(value: Any) -> EngineConfig:
    """A check: an `EngineConfig`, or a mapping of its fields, as a config file has it."""
    if not isinstance(value, Mapping):
        return checks.instance(EngineConfig)(value)  # type: ignore[no-any-return]
    given = checks.fields_of(EngineConfig, value)
    if isinstance(given.get("reuse"), Mapping):
        given["reuse"] = ReuseConfig(**checks.fields_of(ReuseConfig, given["reuse"]))
    return EngineConfig(**given)


def differing(config: EngineConfig | ReuseConfig) -> dict[str, Any]:
    """The fields of a config that are not the default, in JSON types and in order: equal for equal configs."""
    given: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, ReuseConfig):
            value = differing(value)
        elif value != field.default and isinstance(value, frozenset):
            value = sorted(value)
        elif value == field.default:
            continue
        given[field.name] = value
    return {name: value for name, value in given.items() if value != {}}
