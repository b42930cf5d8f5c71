"""Floors: what a hit cannot be faster than here. Bandwidth, short forward passes and a decode step, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..config import MiB
from ..runner import Runner
from .engine import interleaved

_BLOCK = 256 * MiB
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Floors:
    """Measured limits.

    Args:
        bytes_per_s: of a plain copy, each byte counted once.
        token_bytes: KV of one token.
        decode_s: one decode step behind the longest prompt.
        forward_s: seconds of one forward pass over so many tokens with nothing before them.
    """

    bytes_per_s: float
    token_bytes: int
    decode_s: float
    forward_s: dict[int, float]

    def of(self, computed: int, placed: int) -> dict[str, float]:
        """The floor of a call: a forward pass over what it computes, and one copy of the KV it places."""
        forward = self.forward_s[min(self.forward_s, key=lambda tokens: abs(tokens - computed))]
        copy = placed * self.token_bytes / self.bytes_per_s
        return {"forward_s": forward, "copy_s": copy, "total_s": forward + copy}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "bytes_per_s": self.bytes_per_s,
            "token_bytes": self.token_bytes,
            "decode_s": self.decode_s,
            "forward_s": {str(tokens): seconds for tokens, seconds in self.forward_s.items()},
        }

    @classmethod
    @torch.no_grad()
    def measure(cls, runner: Runner, ids: Sequence[int], computed: Sequence[int]) -> Floors:
        """Medians, after one round that is thrown away.

        Args:
            runner: of the model.
            ids: a prompt.
            computed: lengths of the short forward passes.
        """
        device = runner.device
        source = torch.zeros(_BLOCK, dtype=torch.uint8, device=device)
        target = torch.zeros_like(source)

        def copy() -> None:
            target.copy_(source)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        cache = runner.open(len(ids) + 4 * _ROUNDS)

        def forward(tokens: int) -> Callable[[], object]:
            return lambda: runner.prefill(cache, ids[:tokens])

        short = interleaved({str(tokens): forward(tokens) for tokens in computed if tokens}, _ROUNDS)
        bandwidth = _BLOCK / interleaved({"copy": copy}, _ROUNDS)["copy"]
        runner.prefill(cache, ids)
        decode = interleaved({"decode": lambda: runner.decode(cache, ids[0])}, _ROUNDS)["decode"]
        runner.close(cache)
        return cls(bandwidth, runner.layout.token_bytes, decode, {int(n): s for n, s in short.items()} or {0: 0.0})
