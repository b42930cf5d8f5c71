"""Hidden work stays within what reuse has saved, by construction."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm_agents.config import ReuseConfig
from kvcomm_agents.plan import Computed, Placed, PrefillPlan
from kvcomm_agents.planning.auditor import SCORED, Auditor
from kvcomm_agents.planning.decision import PrefillDecision
from kvcomm_agents.planning.guard import AuditRecord, Guard, Option, Situation
from kvcomm_agents.planning.ledger import Ledger


def reused(length: int, computed: int, cheaper: int | None = None) -> PrefillDecision:
    import torch

    from kvcomm_agents.kv.block import KVBlock

    held = torch.zeros(1, 1, length - computed, 1)
    runs = (Computed(0, computed - 1), Placed(computed - 1, length - 1, KVBlock(held, held), exact=False))
    situation = Situation(length - computed, 1 - computed / length)
    return PrefillDecision(
        PrefillPlan((*runs, Computed(length - 1, length))),
        Option("raw32", computed, situation),
        0.01,
        trial=None if cheaper is None else Option("raw16", cheaper, situation),
        exact=length,
        learns=True,
    )


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(60, 900), st.floats(0.05, 0.9), st.integers(0, 3)), max_size=60),
    share=st.sampled_from([0.0, 0.02, 0.05, 0.1]),
)
def test_hidden_work_never_exceeds_its_share_and_one_prompt(calls: list[tuple[int, float, int]], share: float) -> None:
    auditor, ledger, guard = Auditor(ReuseConfig(hidden_share=share)), Ledger(), Guard(0.02)
    first = None
    for number, (length, part, agent) in enumerate(calls):
        computed = max(3, int(length * part))
        decision = reused(length, computed, max(2, computed // 2))
        first = first or length
        ledger.open(length)
        if auditor.measures(decision, ledger, guard, f"agent {agent}"):
            ledger.charge("audit", length - decision.plan.tainted_from + SCORED)
            guard.learn(AuditRecord(f"agent {agent}", number, "raw32", decision.option.situation, 0.01))  # type: ignore[union-attr]
        ledger.credit(decision.saved)
        account = ledger.account
        assert account.spent_tokens <= first + share * account.saved + 1e-6


def test_a_new_reader_is_measured_first_and_one_that_could_gain_nothing_hardly_ever() -> None:
    auditor, ledger, guard = Auditor(ReuseConfig()), Ledger(), Guard(0.02)
    ledger.open(1000)
    ledger.credit(5000)
    assert auditor.measures(reused(400, 100, 60), ledger, guard, "new")
    guard.learn(AuditRecord("new", 1, "raw32", Situation(300, 0.7), 0.003))
    assert auditor.measures(reused(400, 100, 60), ledger, guard, "new"), "the next twenty calls could gain 800"
    assert not auditor.measures(reused(400, 100), ledger, guard, "new")


def test_a_number_is_obeyed_whatever_it_costs() -> None:
    ledger, guard = Ledger(), Guard(0.02)
    assert Auditor(ReuseConfig(audit_share=1.0)).measures(reused(400, 100), ledger, guard, "a")
    assert not Auditor(ReuseConfig(audit_share=0.0)).measures(reused(400, 100), ledger, guard, "a")


def test_without_idle_time_a_few_calls_are_served_exactly() -> None:
    auditor, ledger, guard = Auditor(ReuseConfig()), Ledger(), Guard(0.02)
    assert not any(auditor.explores() for _ in range(200))
    for _ in range(40):
        auditor.measures(reused(400, 100), ledger, guard, "a")
    assert 0 < sum(auditor.explores() for _ in range(400)) < 60
    auditor.audited()
    assert not any(auditor.explores() for _ in range(200))
