"""What a user can set: frozen, validated, readable from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from .errors import ConfigError

DType = Literal["auto", "float32", "bfloat16", "float16"]
ReuseMode = Literal["exact", "corrected", "auto", "off"]

MiB = 1 << 20
GiB = 1 << 30


def _switch(text: str) -> bool:
    """Of `1`, `true`, `on` or `yes`, and their opposites."""
    known = dict.fromkeys(("1", "true", "on", "yes"), True) | dict.fromkeys(("0", "false", "off", "no"), False)
    if text.strip().lower() not in known:
        raise ValueError(f"a switch is one of {', '.join(known)}")
    return known[text.strip().lower()]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class ReuseConfig:
    """How much of a prompt may be placed instead of computed.

    Args:
        mode: `off` computes everything; `exact` places only KV that equals a dense prefill's.
            `auto` also places corrected KV, as much as the guard allows; `corrected` places all
            it can, whatever the guard expects.
        max_divergence: the bound the guard keeps: mean KL per produced token over an app's reused calls, in nats.
        max_divergence_quantile: the bound holds for this share of calls (0.9, say) instead of for their mean.
        calibration: a file made by `kvcomm calibrate`; `None` takes what is shipped for the model, or a safe default.
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
        _require(self.mode in get_args(ReuseMode), f"reuse mode {self.mode!r} is none of {get_args(ReuseMode)}")
        _require(
            self.max_divergence > 0,
            f"max_divergence={self.max_divergence} must be positive; for no divergence at all use mode='exact'",
        )
        for name in ("audit_share", "hidden_share"):
            share = getattr(self, name)
            _require(share is None or 0 <= share <= 1, f"{name}={share} must be in [0, 1], or None")
        _require(
            self.max_divergence_quantile is None or 0.5 <= self.max_divergence_quantile < 1,
            f"max_divergence_quantile={self.max_divergence_quantile} must be in [0.5, 1), or None for the mean",
        )
        _require(self.min_prefix >= 1, f"min_prefix={self.min_prefix} must be at least 1 token")
        _require(self.min_span >= 4, f"min_span={self.min_span} must be at least 4 tokens")
        _require(self.min_placed >= 1, f"min_placed={self.min_placed} must be at least 1 token")
        _require(self.pack_tokens >= 16, f"pack_tokens={self.pack_tokens} must be at least 16 tokens")
        _require(
            self.pack_positions in ("reset", "running"),
            f"pack_positions={self.pack_positions!r} must be 'reset' or 'running'",
        )
        for name in ("span_bytes", "anchor_bytes"):
            size = getattr(self, name)
            _require(size is None or size >= 0, f"{name}={size} must not be negative; None takes a share")
        _require(self.novel_leverage >= 1, f"novel_leverage={self.novel_leverage} must be at least 1 (the usual)")
        _require(self.novel_weight >= 1, f"novel_weight={self.novel_weight} must be at least 1")

    @property
    def learns(self) -> bool:
        """Whether spans, anchors and audits are kept at all."""
        return self.mode in ("auto", "corrected")


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
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        _require(self.dtype in get_args(DType), f"dtype {self.dtype!r} is none of {get_args(DType)}")
        for name in ("memory_bytes", "device_cache_bytes", "host_cache_bytes"):
            size = getattr(self, name)
            _require(size is None or size >= 0, f"{name}={size} must not be negative; 0 keeps nothing")
        _require(
            self.max_context is None or self.max_context >= 2,
            f"max_context={self.max_context} must be at least 2 tokens; None takes the model's own limit",
        )
        _require(self.max_concurrent >= 1, f"max_concurrent={self.max_concurrent} must be at least 1")
        _require(self.prefill_chunk >= 1, f"prefill_chunk={self.prefill_chunk} must be at least 1 token")

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
            value: object
            try:
                if field.name == "reuse":
                    value = ReuseConfig(mode=text)  # type: ignore[arg-type]
                elif field.name in ("device", "dtype", "embedder", "memory_folder", "report_file"):
                    value = text
                elif isinstance(field.default, bool):
                    value = _switch(text)
                else:
                    value = int(text)
                config = replace(config, **{field.name: value})  # type: ignore[arg-type]
            except ValueError as error:
                raise ConfigError(f"{name}={text!r}: {error}") from error
        return config
