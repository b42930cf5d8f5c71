"""Forced: the distributions that predict an output which is known already, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...plan import PrefillPlan
from .runner import Runner
from .scoring import prolonged


def forced(runner: Runner, ids: Sequence[int], output: Sequence[int], plan: PrefillPlan) -> Tensor:
    """Logits `[1 + len(output), vocabulary]` that predict `output` and what follows, the prompt run by a plan."""
    cache = runner.open(plan.length + len(output))
    try:
        return runner.prefill(cache, [*ids, *output], prolonged(plan, len(output)), keep=len(output) + 1).logits
    finally:
        runner.close(cache)
