"""The guard lets through what audits showed to be safe, and nothing it knows nothing of."""

from __future__ import annotations

import math
import random

from kvcomm_agents.planning.guard import AuditRecord, Features, Guard
from kvcomm_agents.planning.ladder import LADDER


def trained(levels: tuple[float, float, float, float], *, audits: int = 12, noise: float = 0.2) -> Guard:
    guard, rng = Guard(max_divergence=0.02), random.Random(0)
    for _ in range(audits):
        features = Features(leverage=rng.uniform(0.7, 1.3), disagreement=rng.uniform(0.06, 0.09))
        for rung, level in enumerate(levels):
            guard.learn(AuditRecord("a", rung, features, level * math.exp(rng.gauss(0, noise))))
    return guard


USUAL = Features(leverage=1.0, disagreement=0.075, examples=9)


def test_no_data_no_reuse() -> None:
    assert Guard(0.02).decide("a", USUAL).rung is None
    assert trained((0.001, 0.001, 0.001, 0.001)).decide("somebody else", USUAL).rung is None


def test_lowest_safe_rung() -> None:
    assert trained((0.01, 0.008, 0.005, 0.005)).decide("a", USUAL).rung == 0
    assert trained((0.04, 0.008, 0.005, 0.005)).decide("a", USUAL).rung == 1
    assert trained((0.04, 0.03, 0.005, 0.005)).decide("a", USUAL).rung == 2
    assert trained((0.04, 0.03, 0.03, 0.005)).decide("a", USUAL).rung == 3
    assert trained((0.04, 0.03, 0.03, 0.03)).decide("a", USUAL).rung is None


def test_prediction_is_near_the_truth_and_grows_with_novelty() -> None:
    guard = trained((0.01, 0.008, 0.005, 0.005), audits=40)
    assert 0.008 < guard.predict("a", 0, USUAL) < 0.014
    predictions = [guard.predict("a", 0, Features(leverage=x, disagreement=0.075)) for x in (0.5, 1, 3, 10, 100)]
    assert predictions == sorted(predictions)
    assert predictions[-1] > 3 * predictions[0]


def test_what_is_usual_of_an_agent_is_expected_to_diverge_as_usual() -> None:
    guard = trained((0.01, 0.008, 0.005, 0.005))
    usual = guard.usual("a")
    assert 0.9 < usual.leverage < 1.1
    assert 0.06 < usual.disagreement < 0.09
    assert 0.008 < guard.predict("a", 0, usual) < 0.016
    assert guard.usual("somebody else") == Features()


def test_novel_text_is_given_most_computation_and_an_audit() -> None:
    decision = trained((0.002, 0.002, 0.002, 0.002)).decide("a", Features(leverage=8.0, disagreement=0.08))
    assert decision.novel
    assert decision.rung in (None, len(LADDER) - 1)


def test_old_records_fade() -> None:
    guard = trained((0.5, 0.5, 0.5, 0.5))
    for _ in range(40):
        for rung in range(len(LADDER)):
            guard.learn(AuditRecord("a", rung, USUAL, 0.004))
    assert guard.decide("a", USUAL).rung == 0


def test_coverage_counts_what_was_served() -> None:
    guard = trained((0.01, 0.01, 0.01, 0.01))
    assert guard.coverage() == (0, 0)
    guard.learn(AuditRecord("a", 0, USUAL, 0.03, predicted=0.01))
    guard.learn(AuditRecord("a", 0, USUAL, 0.01, predicted=0.01))
    assert guard.coverage() == (2, 1)


def test_measurements_survive_saving() -> None:
    guard, other = trained((0.04, 0.03, 0.008, 0.005)), Guard(0.02)
    other.load_state(guard.state())
    assert other.decide("a", USUAL) == guard.decide("a", USUAL)
