"""Corrected reuse through the whole engine: what may be placed, and what must never be."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from two_agents import QUESTIONS, WORDS, call, chain, made, make_speaker

from kvcomm_agents import Completion, EngineConfig, Message, Request, ReuseConfig, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel

Tiny = Callable[[str], LoadedModel]


@pytest.fixture(scope="module")
def speaker() -> LoadedModel:
    return make_speaker()


@pytest.fixture
def corrected(speaker: LoadedModel) -> Iterator[Engine]:
    engine = made(speaker, mode="corrected", audit_share=1.0)
    yield engine
    engine.close()


def test_the_second_agent_is_given_the_first_ones_kv(corrected: Engine) -> None:
    rungs = []
    for question in QUESTIONS[:7]:
        _, critic = chain(corrected, question)
        rungs.append(critic.report.rung)
    report = critic.report
    assert report.placed_corrected_tokens > 60
    assert rungs[0] == "raw16", "there are no maps yet"
    assert rungs[-1] == "map0 static"
    assert report.prompt_tokens == report.computed_tokens + report.placed_exact_tokens + report.placed_corrected_tokens


def test_exact_mode_is_exact_after_any_amount_of_corrected_reuse(speaker: LoadedModel, corrected: Engine) -> None:
    """Approximate KV never reaches an exact request, though the same prompts were served corrected before."""
    fresh = made(speaker, mode="exact")
    for question in QUESTIONS[:4]:
        chain(corrected, question)
    for question in QUESTIONS[:4]:
        exact, dense = chain(corrected, question, reuse="exact"), chain(fresh, question, reuse="off")
        assert [one.token_ids for one in exact] == [one.token_ids for one in dense]
        assert all(one.report.placed_corrected_tokens == 0 for one in exact)
    fresh.close()


def test_nothing_learned_or_seen_crosses_a_namespace(corrected: Engine) -> None:
    for question in QUESTIONS[:4]:
        chain(corrected, question, namespace="a")
    first, _ = chain(corrected, QUESTIONS[0], namespace="b")
    assert first.report.placed_tokens == 0
    # In b the critic has only what the solver of b produced, and no anchors, whatever a holds.
    memories = {name: corrected.inspect(lambda core, name=name: core.policy.namespace(name)) for name in "ab"}
    texts = {n: "".join(memories[n].decode(one.ids.tolist()) for one in memories[n].library.spans()) for n in "ab"}
    wording = ", ".join(random.Random(3).sample(WORDS, 9))
    assert wording in texts["a"]
    assert wording not in texts["b"]
    assert memories["b"].corrections.linear.nbytes < memories["a"].corrections.linear.nbytes


def test_reuse_begins_at_the_first_reading(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto", max_divergence=100.0)
    reports = [chain(engine, question)[1].report for question in QUESTIONS]
    assert reports[0].rung == "raw32"
    assert reports[0].placed_corrected_tokens > 20
    assert reports[0].reason == "within the bound, by what is usual on the model"
    assert reports[-1].reason == "within the bound, by measurements of the agent"
    reused = [report for report in reports if report.placed_corrected_tokens]
    assert len(reused) >= 7, "where all but the heads is an exact prefix, there is too little to save"
    assert all(0 < report.predicted_divergence < 100 for report in reused)
    engine.close()


def test_hidden_work_is_paid_for_by_what_reuse_saves(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto", max_divergence=100.0)
    longest = 0
    for question in QUESTIONS:
        longest = max(longest, chain(engine, question)[1].report.prompt_tokens)
    account = engine.ledger()
    assert account.saved > 0
    assert 0 < account.spent_tokens <= longest + 0.1 * account.saved
    assert engine.ledger("default") == account
    assert engine.ledger("another").saved == 0
    engine.close()


def test_the_guard_never_lets_through_what_it_expects_to_be_too_far(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto", max_divergence=1e-9)
    for question in QUESTIONS:
        report = chain(engine, question)[1].report
        assert report.placed_corrected_tokens == 0
    assert report.reason.startswith(("predicted ", "too little "))
    assert report.reason in str(report)
    engine.close()


@pytest.mark.parametrize(
    ("reuse", "asked", "reason"),
    [
        ({"mode": "auto"}, "off", "reuse is off"),
        ({"mode": "auto"}, "exact", "exact mode"),
        ({"mode": "exact"}, "auto", "nothing is learned here"),
        ({"mode": "auto", "exact_agents": frozenset({"critic"})}, None, "one of exact_agents"),
        ({"mode": "auto", "min_placed": 200}, None, "tokens at most < 200"),
    ],
)
def test_reports_say_why_nothing_was_placed(speaker: LoadedModel, reuse: dict, asked: str, reason: str) -> None:
    engine = made(speaker, **reuse)
    report = chain(engine, QUESTIONS[0], reuse=asked)[1].report
    assert report.placed_corrected_tokens == 0
    assert report.reason.endswith(reason)
    engine.close()


def test_a_namespace_without_others_has_nothing_to_share(corrected: Engine) -> None:
    for text in ("nobody has said this before", "nor has anybody said that"):
        assert call(corrected, "reader", text).report.reason == "nothing shared behind the prefix"


def test_audits_measure_what_was_served(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto", max_divergence=100.0, audit_share=1.0)
    for question in QUESTIONS:
        chain(engine, question)
    audited, exceeded = engine.inspect(lambda core: core.policy.namespace("default")).guard.coverage()
    assert audited > 0
    assert exceeded == 0
    engine.close()


def test_exact_agents_and_judges_get_no_approximate_kv(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="corrected", exact_agents=frozenset({"critic"}))
    for question in QUESTIONS[:4]:
        assert chain(engine, question)[1].report.placed_corrected_tokens == 0
    engine.close()
    engine = made(speaker, mode="corrected")
    for question in QUESTIONS[:4]:
        answers = [call(engine, name, f"Q: {question}\nA:").text for name in ("left hand", "right", "third one")]
        text = f"The question: {question}\nOne: {answers[0]}\nTwo: {answers[1]}\nThree: {answers[2]}\nWhich is best?"
        judged = call(engine, "judge", text).report
        assert (judged.placed_corrected_tokens, judged.reason) == (0, "answers compete in the prompt")
        retold = call(engine, "editor", f"Question: {question}\nAnswer: {answers[0]}\nSay it shorter.").report
        assert call(engine, "judge", text + " Again?").report.placed_corrected_tokens == 0
    assert retold.placed_corrected_tokens > 0
    engine.close()


def grown(question: str, first: Completion, critic: Completion) -> Request:
    """The critic is asked once more."""
    history = (
        Message("system", "You are agent critic and have instructions of your own, number 6."),
        Message("user", f"Check this. The question was: {question}\nThe solver wrote: {first.text}\nIs it right?"),
        Message("assistant", critic.text),
        Message("user", "Are you sure?"),
    )
    return Request(history, SamplingParams(max_tokens=24), agent="critic")


def test_a_growing_conversation_keeps_its_tainted_past(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto", max_divergence=100.0, audit_share=0.0)
    for question in QUESTIONS[:3]:
        first, critic = chain(engine, question)
    request = grown(QUESTIONS[2], first, critic)
    report = engine.generate(request).report
    assert report.placed_corrected_tokens >= critic.report.placed_corrected_tokens > 0
    assert report.computed_tokens < 60
    assert engine.generate(replace(request, reuse="exact")).report.placed_corrected_tokens == 0
    engine.close()


def test_an_audit_makes_a_tainted_past_exact(speaker: LoadedModel) -> None:
    engine = made(speaker, mode="auto", max_divergence=100.0, audit_share=1.0)
    for question in QUESTIONS[:3]:
        first, critic = chain(engine, question)
    assert critic.report.placed_corrected_tokens > 0
    request = grown(QUESTIONS[2], first, critic)
    answer = engine.generate(request)
    assert answer.report.placed_exact_tokens > critic.report.prompt_tokens
    fresh = made(speaker, mode="off")
    assert answer.report.placed_corrected_tokens or fresh.generate(request).token_ids == answer.token_ids
    fresh.close()
    engine.close()


def test_immovable_models_serve_auto_as_exact(tiny: Tiny) -> None:
    engine = Engine(tiny("sliding-window"), EngineConfig(reuse=ReuseConfig(mode="auto")))
    for question in QUESTIONS[:3]:
        assert chain(engine, question)[1].report.placed_corrected_tokens == 0
    engine.close()


def test_what_was_learned_survives_the_process(
    speaker: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = EngineConfig(
        memory_folder=str(tmp_path), reuse=ReuseConfig(mode="auto", max_divergence=100.0, min_placed=12)
    )
    engine = Engine(speaker, config)
    for question in QUESTIONS[:8]:
        chain(engine, question)
    engine.close()
    again = Engine(speaker, config)
    chain(again, QUESTIONS[8])
    memory = again.inspect(lambda core: core.policy.namespace("default"))
    assert memory.guard.measured("critic") >= 1
    assert len(memory.corrections.pool) > 2
    again.close()
    for data in tmp_path.rglob("*.safetensors"):
        data.write_bytes(data.read_bytes()[:-100])
    damaged = Engine(speaker, config)
    assert damaged.inspect(lambda core: len(core.policy.namespace("default").guard)) == 0
    assert chain(damaged, QUESTIONS[0])[1].report.output_tokens > 0
    assert "starting with an empty memory" in caplog.text
    damaged.close()


def test_what_is_expected_is_corrected_before_a_prompt_holds_it(corrected: Engine) -> None:
    for question in QUESTIONS[:5]:
        first, _ = chain(corrected, question, reuse="exact")
        _, critic = chain(corrected, question + " Say why.")
    memory = corrected.inspect(lambda core: core.policy.namespace("default"))
    assert not [slot for _, slot in memory.corrections.prepared if slot.agent == "critic"], "learning made them stale"
    known = len(memory.library)
    corrected.expect([f"A report. {first.text}", "words that nobody has said or read before"])
    corrected.expect([first.text], namespace="another")
    corrected.settle()
    assert [slot for _, slot in memory.corrections.prepared if slot.agent == "critic"]
    assert len(memory.library) == known
    assert "another" not in corrected.inspect(lambda core: dict(core.namespaces))
    assert critic.report.spans_found > 0


def test_of_what_is_expected_only_what_is_unknown_is_warmed(corrected: Engine) -> None:
    first = call(corrected, "solver", QUESTIONS[0])
    corrected.expect([f"Report: {first.text}", "words that nobody has said or read before", "short"], warm=True)
    corrected.settle()
    memory = corrected.inspect(lambda core: core.policy.namespace("default"))
    warmed = [memory.decode(span.ids.tolist()) for span in memory.library.spans() if span.warmed]
    assert warmed == ["words that nobody has said or read before"]


def test_exact_engines_expect_nothing(engine: Engine) -> None:
    engine.expect(["before the first request"])
    call(engine, "solver", "hello")
    engine.expect(["a text that is long enough to be a span"])
    assert engine.settle(10)


def test_saving_needs_a_folder(corrected: Engine) -> None:
    with pytest.raises(ConfigError, match="memory_folder"):
        corrected.save()
