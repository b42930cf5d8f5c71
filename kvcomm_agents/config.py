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


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class ReuseConfig:
    """How much of a prompt may be placed instead of computed.

    Args:
        mode: `off` computes everything; `exact` places only KV that equals a dense prefill's.
            `corrected` and `auto` may also place corrected KV; `auto` lets the guard decide how much.
        min_prefix: tokens; a shorter prefix hit is not worth the copy and is computed.
    """

    mode: ReuseMode = "exact"
    min_prefix: int = 8

    def __post_init__(self) -> None:
        _require(self.mode in get_args(ReuseMode), f"reuse mode {self.mode!r} is none of {get_args(ReuseMode)}")
        _require(self.min_prefix >= 1, f"min_prefix={self.min_prefix} must be at least 1 token")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Where a model runs, and how much memory its stored KV may take.

    Args:
        device: `auto` (CUDA if there is one, else CPU) or any torch device string.
        dtype: `auto` is the model's own on CUDA, float32 on CPU.
        device_cache_bytes, host_cache_bytes: budgets of stored KV on the model's device and in
            host memory. On a CPU model the two add up to one host tier.
        max_context: tokens; `None` takes the model's own limit.
        max_concurrent: requests decoded in turn; the rest wait in the queue.
        reuse: see `ReuseConfig`.
    """

    device: str = "auto"
    dtype: DType = "auto"
    device_cache_bytes: int = 2 * GiB
    host_cache_bytes: int = 2 * GiB
    max_context: int | None = None
    max_concurrent: int = 8
    reuse: ReuseConfig = ReuseConfig()

    def __post_init__(self) -> None:
        _require(self.dtype in get_args(DType), f"dtype {self.dtype!r} is none of {get_args(DType)}")
        for name in ("device_cache_bytes", "host_cache_bytes"):
            _require(
                getattr(self, name) >= 0,
                f"{name}={getattr(self, name)} must not be negative; 0 keeps nothing",
            )
        _require(
            self.max_context is None or self.max_context >= 2,
            f"max_context={self.max_context} must be at least 2 tokens; None takes the model's own limit",
        )
        _require(self.max_concurrent >= 1, f"max_concurrent={self.max_concurrent} must be at least 1")

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
                elif field.name in ("device", "dtype"):
                    value = text
                else:
                    value = int(text)
                config = replace(config, **{field.name: value})  # type: ignore[arg-type]
            except ValueError as error:
                raise ConfigError(f"{name}={text!r}: {error}") from error
        return config
