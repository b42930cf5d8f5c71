"""A plan covers its prompt exactly once, or says what is wrong."""

from __future__ import annotations

import pytest
import torch

from kvcomm_agents.errors import PlanError
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.plan import Computed, Placed, PrefillPlan, Run, dense


def block(tokens: int) -> KVBlock:
    return KVBlock(torch.zeros(1, 1, tokens, 2), torch.zeros(1, 1, tokens, 2))


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ((), "last token"),
        ((Placed(0, 3, block(3), True),), "last token"),
        ((Computed(1, 3),), "start at 0"),
        ((Computed(0, 3), Computed(4, 5)), "start at 3"),
        ((Computed(0, 3), Computed(2, 5)), "start at 3"),
        ((Computed(0, 0), Computed(0, 5)), "at least one token"),
        ((Placed(0, 3, block(2), True), Computed(3, 4)), "2 tokens"),
    ],
)
def test_faulty_plans_are_refused(runs: tuple[Run, ...], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        PrefillPlan(runs)


def test_counts_and_taint() -> None:
    plan = PrefillPlan((Placed(0, 4, block(4), True), Computed(4, 6), Placed(6, 9, block(3), False), Computed(9, 10)))
    assert (plan.length, plan.computed_tokens) == (10, 3)
    assert (plan.placed_tokens(exact=True), plan.placed_tokens(exact=False)) == (4, 3)
    assert (plan.is_exact, plan.tainted_from) == (False, 6)
    assert (dense(5).is_exact, dense(5).tainted_from) == (True, 5)
