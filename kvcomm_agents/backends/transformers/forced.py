"""Forced: the distributions that predict an output which is known already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ...plan import Computed, PrefillPlan
from .cache import PlanCache
from .runner import Runner


def forced(runner: Runner, ids: Sequence[int], output: Sequence[int], plan: PrefillPlan) -> Tensor:
    """Logits `[1 + len(output), vocabulary]` that predict `output` and what follows, the prompt run by a plan."""
    with _forced(runner, ids, output, plan) as (logits, _):
        return logits


@contextmanager
def _forced(
    runner: Runner, ids: Sequence[int], output: Sequence[int], plan: PrefillPlan
) -> Iterator[tuple[Tensor, PlanCache]]:
    """The logits of `forced`, and the context while it is open."""
    last = plan.runs[-1]
    whole = PrefillPlan((*plan.runs[:-1], Computed(last.start, len(ids) + len(output))))
    cache = runner.open(whole.length)
    try:
        yield runner.prefill(cache, [*ids, *output], whole, keep=len(output) + 1).logits, cache
    finally:
        runner.close(cache)
