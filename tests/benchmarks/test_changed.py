"""Prompts of which a few words change, on a tiny random model."""

import json
from dataclasses import replace

import pytest
from conftest import tiny_model

from benchmarks import changed, served
from benchmarks.changed import Trio, ask, ask_case, measure, tables
from benchmarks.changes import CASES, MOST
from benchmarks.options import ChangedOptions
from benchmarks.session import Session
from kvcomm_agents.errors import ConfigError, ContextLengthError
from kvcomm_agents.request import Message, Request


@pytest.fixture(scope="module")
def long(tiny):
    """A tiny model with room for prompts of thousands of bytes."""
    loaded = tiny_model("llama")
    loaded.model.config.max_position_embeddings = 8192
    return Session(lambda: loaded)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_every_prompt_differs_from_the_last_and_repeats_most_of_it(case):
    texts = ["\n".join(message.content for message in case.prompt(number).messages) for number in range(MOST)]
    for before, after in zip(texts, texts[1:], strict=False):
        assert before != after
        kept = {line for line in after.splitlines() if line in before}
        assert sum(map(len, kept)) > 0.5 * len(after)
    roles = [message.role for message in case.messages(1, "What now?")]
    assert roles[0] == "system"
    assert roles[1:] == ["user", "assistant"] * (len(roles) // 2 - 1) + ["user"]


@pytest.mark.parametrize("mode", ["exact", "off"])
def test_without_reuse_the_engines_do_as_they_say(long, mode):
    options = ChangedOptions(prompts=3, max_tokens=6)
    engines = Trio(long, replace(served.POLICY, mode=mode))
    rows = list(ask_case(engines, CASES["clock"], options, about=True))
    assert [row.number for row in rows] == [1, 2]
    for row in rows:
        assert row.computed == (row.cached if mode == "exact" else row.prompt)
        assert 0 < row.prompt - row.cached < 60  # the words before the clock
        assert (row.kl, row.same) == (0.0, True)
        assert row.answer == row.dense_answer != ""
        assert min(row.ttft_s, row.cached_ttft_s) > 0


def test_reuse_is_compared_with_dense_by_the_plan_that_was_served(long, monkeypatch):
    monkeypatch.setattr(served, "POLICY", replace(served.POLICY, max_divergence=50.0))
    options = ChangedOptions(cases="worker", prompts=4, max_tokens=6, mode="corrected")
    report = json.loads(json.dumps(measure(options, long)))
    case = report["cases"]["worker"]
    assert case["prompts"] == 6  # of two questions, and the first prompts are left out
    assert len(case["asked"]) == 6
    for row in case["asked"]:
        assert (row["kl"] > 0) == (row["computed"] < row["cached"])
        assert row["same"] == (row["answer"] == row["dense_answer"])
    assert case["computed_of_cached"] == pytest.approx(
        sum(row["computed"] for row in case["asked"]) / sum(row["cached"] for row in case["asked"])
    )
    table, line = tables(report)
    assert table.rows[0][0] == "worker"
    assert line.startswith("worker: ")


def test_a_case_leaves_nothing_behind(long):
    engines = Trio(long, served.POLICY)
    options = ChangedOptions(prompts=2, max_tokens=4)
    first = list(ask_case(engines, CASES["tools"], options, about=False))
    again = list(ask_case(engines, CASES["tools"], options, about=False))
    assert [row.cached for row in first] == [row.cached for row in again]
    assert len(engines.reuse.idle) == 0
    assert [engine.prefixes.stats().tokens for engine in (engines.off, engines.exact, engines.reuse)] == [0, 0, 0]


def test_what_cannot_be_asked_is_told(long, tiny):
    with pytest.raises(ConfigError, match="there is no case weather"):
        measure(ChangedOptions(cases="weather"), long)
    with pytest.raises(ConfigError, match="9 prompts were asked for"):
        measure(ChangedOptions(prompts=9), long)
    short = Trio(Session(lambda: tiny("llama")), served.POLICY)
    with pytest.raises(ContextLengthError, match="context holds 512"):
        ask(short.off, Request((Message("user", "word " * 200),)))
    assert changed.MOST == 8
