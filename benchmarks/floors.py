"""Floors: what a hit cannot be faster than here. Bandwidth, short forward passes and a decode step, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.config import MiB
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.plan import Computed, Placed, PrefillPlan

from .engine import interleaved

_BLOCK = 256 * MiB
_ROUNDS = 5
_SAME = 0.05  # lengths that differ by less are measured as one


@dataclass(frozen=True, slots=True)
class Floors:
    """Measured limits.

    Args:
        bytes_per_s: of a plain copy, each byte counted once.
        token_bytes: KV of one token.
        decode_s: one decode step behind the longest prompt.
        forward_s: seconds of one forward pass over so many tokens with nothing before them.
        behind_s: the same with other tokens before them, by `(computed, placed)`: attention over these is in it.
    """

    bytes_per_s: float
    token_bytes: int
    decode_s: float
    forward_s: dict[int, float]
    behind_s: dict[tuple[int, int], float]

    def of(self, computed: int, placed: int) -> dict[str, float] | None:
        """The floor of a call: a forward pass over what it computes, and one copy of the KV it places.

        `attended_s` is that floor with attention over what is placed. `None` if no such call was measured.
        """
        near = [one for one in self.behind_s if _near(one[0], computed) and _near(one[1], placed)]
        if not near:
            return None
        same = min(near, key=lambda one: abs(one[0] - computed) + abs(one[1] - placed))
        forward = self.forward_s[same[0]]
        copy = placed * self.token_bytes / self.bytes_per_s
        return {
            "forward_s": forward,
            "copy_s": copy,
            "total_s": forward + copy,
            "attended_s": self.behind_s[same] + copy,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "bytes_per_s": self.bytes_per_s,
            "token_bytes": self.token_bytes,
            "decode_s": self.decode_s,
            "forward_s": {str(tokens): seconds for tokens, seconds in self.forward_s.items()},
            "behind_s": {f"{computed}+{placed}": seconds for (computed, placed), seconds in self.behind_s.items()},
        }

    @classmethod
    @torch.no_grad()
    def measure(cls, runner: Runner, ids: Sequence[int], calls: Sequence[tuple[int, int]]) -> Floors:
        """Medians, after one round that is thrown away.

        Args:
            runner: of the model.
            ids: a prompt as long as the longest of the calls.
            calls: tokens `(computed, placed)` of each; those nearly alike are measured as one.
        """
        device = runner.device
        source = torch.zeros(_BLOCK, dtype=torch.uint8, device=device)
        target = torch.zeros_like(source)

        def copy() -> None:
            target.copy_(source)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        bandwidth = _BLOCK / interleaved({"copy": copy}, _ROUNDS)["copy"]
        cache = runner.open(len(ids) + 4 * _ROUNDS)
        runner.prefill(cache, ids)
        decode = interleaved({"decode": lambda: runner.decode(cache, ids[0])}, _ROUNDS)["decode"]
        known = cache.capture(0, len(ids))

        def forward(tokens: int) -> Callable[[], object]:
            return lambda: runner.prefill(cache, ids[:tokens])

        apart = _distinct(calls)
        short = interleaved({str(computed): forward(computed) for computed in {one[0] for one in apart}}, _ROUNDS)
        behind = {(computed, placed): _behind(runner, ids, known, computed, placed) for computed, placed in apart}
        runner.close(cache)
        return cls(bandwidth, runner.layout.token_bytes, decode, {int(n): s for n, s in short.items()}, behind)


def _behind(runner: Runner, ids: Sequence[int], known: KVBlock, computed: int, placed: int) -> float:
    placed = min(placed, len(ids) - computed)
    cache = runner.open(placed + computed)
    plan = PrefillPlan((Placed(0, placed, known.slice(0, placed), True), Computed(placed, placed + computed)))
    taken = [runner.prefill(cache, ids[: placed + computed], plan).forward_s for _ in range(_ROUNDS + 1)]
    runner.close(cache)
    return median(taken[1:])


def _near(one: int, other: int) -> bool:
    return math.isclose(one, other, rel_tol=_SAME, abs_tol=1)


def _distinct(calls: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for computed, placed in sorted({one for one in calls if all(one)}):
        like = [one for one in found if _near(one[0], computed)]
        if not any(_near(one[1], placed) for one in like):
            found.append((like[0][0] if like else computed, placed))
    return found
