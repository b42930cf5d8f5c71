"""Floors: what a hit cannot be faster than here. Bandwidth, short forward passes and a decode step, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.config import MiB
from kvcomm_agents.plan import Computed, Placed, PrefillPlan

_BLOCK = 256 * MiB
_ROUNDS = 5
_SAME = 0.05  # lengths that differ by less are measured as one


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each piece of work, taken in turns, the first round thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(times[1:]) for name, times in seconds.items()}


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
        near = [work for work in self.behind_s if _near(work[0], computed) and _near(work[1], placed)]
        if not near:
            return None
        same = min(near, key=lambda work: abs(work[0] - computed) + abs(work[1] - placed))
        forward, copy = self.forward_s[same[0]], placed * self.token_bytes / self.bytes_per_s
        total, attended = forward + copy, self.behind_s[same] + copy
        return {"forward_s": forward, "copy_s": copy, "total_s": total, "attended_s": attended}

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
        short, behind = dict[int, float](), dict[tuple[int, int], float]()
        for computed, placed in _distinct(calls):
            fits = min(placed, len(ids) - computed)
            run = Placed(0, fits, known.slice(0, fits), exact=True)
            hit = partial(runner.prefill, cache, ids[: fits + computed])
            plan = PrefillPlan((run, Computed(fits, fits + computed)))
            behind[computed, placed] = median([hit(plan).forward_s for _ in range(_ROUNDS + 1)][1:])
            if computed not in short:
                alone = partial(runner.prefill, cache, ids[:computed])
                short[computed] = interleaved({"forward": alone}, _ROUNDS)["forward"]
        runner.close(cache)
        return cls(bandwidth, runner.layout.token_bytes, decode, short, behind)


def _near(tokens: int, other: int) -> bool:
    return math.isclose(tokens, other, rel_tol=_SAME, abs_tol=1)


def _distinct(calls: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """One of each kind of call, those alike in what they compute with the very same count of it."""
    kinds: list[tuple[int, int]] = []
    for computed, placed in sorted({work for work in calls if all(work)}):
        like = [work for work in kinds if _near(work[0], computed)]
        if not any(_near(work[1], placed) for work in like):
            kinds.append((like[0][0] if like else computed, placed))
    return kinds
