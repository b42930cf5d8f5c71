"""The guard keeps the bound from the first reading on: from a calibration, then from the app, then from the agent."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm_agents.errors import ConfigError, SavedMemoryError
from kvcomm_agents.planning.calibration import FLOOR, SAFE_DEFAULT, SHIPPED, Calibration, find_calibration
from kvcomm_agents.planning.guard import AuditRecord, Guard, Option, Situation
from kvcomm_agents.planning.ladder import BY_NAME, LADDER

USUAL = Situation(span_tokens=300, placed=0.5, spans=3)


def options(**computed: int) -> list[Option]:
    return [Option(name.replace("_", " "), tokens, USUAL) for name, tokens in computed.items()]


def measured(guard: Guard, agent: str, rung: str, kl: float, calls: int, noise: float = 0.2) -> Guard:
    rng = random.Random(len(agent))
    for _ in range(calls):
        true = kl * math.exp(rng.gauss(0, noise))
        guard.learn(AuditRecord(agent, rng.getrandbits(40), rung, USUAL, true))
    return guard


def test_a_first_reading_is_given_a_rung_that_needs_no_measurement() -> None:
    decision = Guard(0.02).decide("stranger", options(raw64=200, raw32=120, raw16=80, map6_static=10), exact=400)
    assert decision.option is not None
    assert (decision.option.rung, decision.basis) == ("raw32", "calibration")
    assert 0 < decision.predicted <= 0.02
    assert decision.trial is not None
    assert decision.trial.rung == "raw16"


def test_a_stranger_who_reads_one_long_span_is_given_more_heads() -> None:
    long = Situation(span_tokens=800, placed=0.9, spans=1)
    asked = [Option("raw32", 60, long), Option("raw third", 270, long)]
    decision = Guard(0.05).decide("stranger", asked, exact=800)
    assert decision.option is not None
    assert decision.option.rung == "raw third"


def test_too_little_to_save_is_served_exactly() -> None:
    decision = Guard(0.02).decide("a", options(raw32=97), exact=100)
    assert (decision.option, decision.reason) == (None, "too little would be saved")


def test_measurements_of_one_agent_tell_of_the_app_and_more_of_itself() -> None:
    guard = Guard(0.02)
    before = guard.predict("b", "raw32", USUAL)
    measured(guard, "a", "raw32", 0.05, calls=6)
    assert guard.basis("b") == "app"
    assert guard.basis("a") == "agent"
    assert before < guard.predict("b", "raw32", USUAL) < guard.predict("a", "raw32", USUAL)
    assert guard.decide("b", options(raw32=120), exact=400).option is None


def test_one_rung_measured_tells_of_the_others() -> None:
    good, bad = (measured(Guard(0.02), "a", "raw16", kl, calls=5) for kl in (0.001, 0.05))
    for rung in LADDER:
        if rung.maps:
            continue
        assert good.predict("a", rung.name, USUAL) < bad.predict("a", rung.name, USUAL)


def test_low_rungs_wait_for_more_measurements() -> None:
    guard = Guard(0.02)
    asked = options(raw32=120, raw16=80, raw6=50)
    taken = []
    for call in range(5):
        decision = guard.decide("a", asked, exact=400)
        assert decision.option is not None
        taken.append(decision.option.rung)
        guard.learn(AuditRecord("a", call, "raw32", USUAL, 0.0005))
    assert taken[0] == "raw32"
    assert taken[1] == "raw16"
    assert taken[4] == "raw6"


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 0.2), st.integers(1, 40), st.integers(0, 10**6))
def test_predictions_come_near_what_is_measured(kl: float, calls: int, seed: int) -> None:
    guard, rng = Guard(0.02), random.Random(seed)
    for call in range(calls):
        guard.learn(AuditRecord("a", call, "raw32", USUAL, kl * math.exp(rng.gauss(0, 0.3))))
    calibration = guard.calibration
    prior = calibration.margin * math.exp(calibration.levels["raw32"])
    predicted = guard.predict("a", "raw32", USUAL)
    assert predicted >= 0
    assert np.isfinite(predicted)
    # between what is usual and what was measured, up to the margin and the spread that a mean adds
    assert 0.2 * min(kl, prior) - 2 * FLOOR <= predicted <= 8 * max(kl, prior)
    if calls >= 30:
        assert 0.4 * kl - 2 * FLOOR < predicted < 3.5 * kl + 2 * FLOOR


def test_more_measurements_narrow_it() -> None:
    guard, seen = Guard(0.02), []
    for call in range(12):
        seen.append(guard._effect("a")[1])
        guard.learn(AuditRecord("a", call, "raw32", USUAL, 0.004))
    assert all(later < earlier for earlier, later in zip(seen, seen[1:], strict=False))


def test_what_was_measured_fades() -> None:
    guard = measured(Guard(0.02), "a", "raw32", 0.2, calls=2)
    at_once = guard.predict("a", "raw32", USUAL)
    for _ in range(400):
        guard.decide("a", options(raw32=120), exact=400)
    assert guard.predict("a", "raw32", USUAL) < at_once


def test_a_quantile_bounds_calls_instead_of_their_mean() -> None:
    calls = Guard(0.02, quantile=0.95)
    assert calls.predict("a", "raw32", USUAL) > Guard(0.02, quantile=0.5).predict("a", "raw32", USUAL)
    taken = calls.decide("a", options(raw64=200, raw32=120), exact=400)
    assert taken.option is None or taken.option.rung == "raw64"


def test_heads_warn_of_an_app_before_an_audit_and_never_reassure() -> None:
    shipped = SHIPPED["HuggingFaceTB/SmolLM2-135M-Instruct"]
    usual = Guard(0.02, shipped).predict("a", "raw32", USUAL)
    worse, better, unknown = Guard(0.02, shipped), Guard(0.02, shipped), Guard(0.02, SAFE_DEFAULT)
    for _ in range(20):
        worse.sense(math.exp(shipped.residual + 1.0))
        better.sense(math.exp(shipped.residual - 1.0))
        unknown.sense(math.exp(shipped.residual + 1.0))
    assert worse.predict("a", "raw32", USUAL) > 2 * usual
    assert better.predict("a", "raw32", USUAL) == pytest.approx(usual)
    assert unknown.predict("a", "raw32", USUAL) == pytest.approx(Guard(0.02).predict("a", "raw32", USUAL))
    worse.sense(math.nan)
    worse.sense(0.0)


def test_records_survive_and_damage_is_refused() -> None:
    guard = measured(Guard(0.02), "a", "raw16", 0.004, calls=6)
    again = Guard(0.02)
    again.load_state(guard.state())
    assert again.predict("a", "raw16", USUAL) == pytest.approx(guard.predict("a", "raw16", USUAL))
    assert again.measured("a") == 6
    for damage in (b"{", b'{"records": [{"agent": 1}]}', b'{"records": 3}'):
        with pytest.raises(SavedMemoryError, match="damaged"):
            Guard(0.02).load_state(torch.frombuffer(bytearray(damage), dtype=torch.uint8))


def test_coverage_counts_what_was_let_through() -> None:
    guard = Guard(0.02)
    for kl, predicted in ((0.01, 0.01), (0.05, 0.01), (0.05, None)):
        guard.learn(AuditRecord("a", 1, "raw32", USUAL, kl, predicted))
    assert guard.coverage() == (2, 1)


def test_deciding_does_not_depend_on_how_many_agents_there_were() -> None:
    guard = Guard(0.02)
    for agent in range(5000):
        guard.learn(AuditRecord(f"agent {agent}", agent, "raw32", USUAL, 0.004))
    assert len(guard) <= 80


def test_calibrations_are_found_kept_and_checked(tmp_path: Path) -> None:
    assert find_calibration("HuggingFaceTB/SmolLM2-135M-Instruct") is SHIPPED["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert find_calibration("somebody/else") is SAFE_DEFAULT
    own = replace(SAFE_DEFAULT, source="my own", app=0.5)
    own.save(tmp_path / "own.json")
    assert find_calibration("any", str(tmp_path / "own.json")) == own
    for text in ("", "[]", '{"app": -1}', '{"levels": {"raw32": "low"}}', '{"nothing": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match="calibrat"):
            Calibration.load(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match="holds no calibration"):
        find_calibration("any", str(tmp_path / "none.json"))


def test_every_rung_has_a_level() -> None:
    for calibration in (SAFE_DEFAULT, *SHIPPED.values()):
        assert all(math.isfinite(calibration.level(name, 4)) for name in BY_NAME)
    cautious, measured_ = SAFE_DEFAULT, SHIPPED["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert all(cautious.level(name, 8) >= measured_.level(name, 8) for name in BY_NAME)
