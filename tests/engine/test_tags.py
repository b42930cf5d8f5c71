"""Answers name the spans that were kept of them; a name that comes back is honoured where the tokens agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from two_agents import make_speaker

from kvcomm_agents import Completion, EngineConfig, Message, Request, ReuseConfig, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.span_library import Span, SpanLibrary, Tagged
from kvcomm_agents.planning.segments import segment

ANSWER, SYSTEM, TAIL = list(range(200, 240)), list(range(0, 20)), list(range(40, 48))
PROMPT = [*SYSTEM, *ANSWER, *TAIL]


def block(tokens: int) -> KVBlock:
    return KVBlock(torch.zeros(1, 1, tokens, 2), torch.zeros(1, 1, tokens, 2))


def add(known: SpanLibrary, ids: list[int], producer: str, origin: str = "output", *, exact: bool = True) -> Span:
    span = known.add(ids, block(len(ids)), producer=producer, origin=origin, exact=exact)  # type: ignore[arg-type]
    assert span is not None
    return span


@pytest.fixture
def known() -> SpanLibrary:
    return SpanLibrary(1 << 20, min_span=12, scope="model and namespace")


def found(known: SpanLibrary, ids: list[int], *tagged: Tagged) -> list[tuple[int, int, int]]:
    cut = segment(ids, "critic", known, tagged=tagged)
    assert [one.start for one in cut] == [0, *(one.stop for one in cut[:-1])]
    return [(one.start, one.tokens, one.span) for one in cut if one.kind == "span"]


def test_the_tag_says_whose_words_they_are(known: SpanLibrary) -> None:
    first, second = add(known, ANSWER, "solver"), add(known, ANSWER, "parrot")
    assert found(known, PROMPT) == [(20, 40, first.id)]
    for span in (first, second):
        tag = known.tag(span.producer, ANSWER)
        assert found(known, PROMPT, Tagged(20, 60, tag)) == [(20, 40, span.id)]
        assert found(known, PROMPT, Tagged(19, 60, tag)) == [(20, 40, span.id)], "one more token before it"


def test_a_tagged_answer_is_one_though_the_agent_also_reads_its_words_elsewhere(known: SpanLibrary) -> None:
    answer = add(known, ANSWER, "solver")
    add(known, ANSWER, "critic", "prompt")  # said to be the same span: an answer's donor serves both
    known.mark_read(add(known, [*ANSWER, *TAIL], "other", "prompt").id, "critic", 0, 48)
    assert found(known, PROMPT) == []
    tag = Tagged(20, 60, known.tag("solver", ANSWER))
    assert found(known, PROMPT, tag) == [(20, 40, answer.id)]


def test_a_tag_stays_when_an_exact_donor_takes_the_span_over(known: SpanLibrary) -> None:
    tag = known.tag("solver", add(known, ANSWER, "solver", exact=False).ids.tolist())
    exact = add(known, ANSWER, "solver")
    assert found(known, PROMPT, Tagged(20, 60, tag)) == [(20, 40, exact.id)]


def test_tags_that_mean_nothing_here_change_nothing(known: SpanLibrary) -> None:
    span = add(known, ANSWER, "solver")
    other = SpanLibrary(1 << 20, min_span=12, scope="model and another namespace")
    mine, foreign = known.tag("solver", ANSWER), other.tag("solver", ANSWER)
    assert mine != foreign
    plain = found(known, PROMPT)
    for tagged in (
        [Tagged(20, 60, foreign)],
        [Tagged(20, 60, "")],
        [Tagged(0, 20, mine)],  # another message than the one it was
        [Tagged(20, 60, mine), Tagged(20, 60, mine)],
        [Tagged(55, 68, mine)],
    ):
        assert found(known, PROMPT, *tagged) == plain
    edited = [*SYSTEM, *ANSWER[:15], 7, 7, *ANSWER[15:], *TAIL]
    assert found(known, edited, Tagged(20, 62, mine)) == [(20, 15, span.id), (37, 25, span.id)]
    rewritten = [*SYSTEM, *range(400, 440), *TAIL]
    assert found(known, rewritten, Tagged(20, 60, mine)) == []


def test_tags_of_evicted_spans_are_forgotten() -> None:
    known = SpanLibrary(3 * block(40).nbytes, min_span=12)
    tag = known.tag("solver", add(known, ANSWER, "solver").ids.tolist())
    for start in range(1000, 1400, 40):
        add(known, list(range(start, start + 40)), "solver")
    assert len(known._tags) == len(known) == 3
    assert found(known, PROMPT, Tagged(20, 60, tag)) == []


def ask(engine: Engine, agent: str, *messages: Message, namespace: str = "default") -> Completion:
    system = Message("system", f"You are agent {agent}, who has instructions of its own.")
    params = SamplingParams(max_tokens=24, temperature=2.0, top_k=3, seed=len(agent))
    answer = engine.generate(Request((system, *messages), params, agent=agent, namespace=namespace))
    engine.settle()
    return answer


@pytest.fixture(scope="module")
def make() -> Callable[..., Engine]:
    loaded = make_speaker()
    return lambda **reuse: Engine(loaded, EngineConfig(reuse=ReuseConfig(**{"min_placed": 12, **reuse})))


def test_answers_carry_tags_that_find_them_in_any_role(make: Callable[..., Engine]) -> None:
    engine = make(mode="corrected")
    question = Message("user", "Which of these is the best, and why: amber, brick, cedar?")
    answer = ask(engine, "solver", question)
    (tag,) = answer.spans
    for role in ("user", "assistant", "tool"):
        report = ask(engine, f"reader {role}", question, Message(role, answer.text, spans=(tag,))).report
        assert report.spans_found >= 2
        assert report.span_tokens >= len(answer.text) + len(question.content) - 2
    assert ask(engine, "solver", question, namespace="b").spans != (tag,)
    engine.close()


def test_wrong_tags_do_no_harm(make: Callable[..., Engine]) -> None:
    engine, other = make(mode="auto", max_divergence=1e-9), make(mode="auto", max_divergence=1e-9)
    question = Message("user", "Which of these is the best, and why: daisy, ember, fjord?")
    answer = ask(engine, "solver", question)
    assert ask(other, "solver", question).spans == answer.spans, "a tag is the same in every process"
    heard = Message("user", answer.text)
    edited = replace(heard, content=answer.text[:4] + "QQQ" + answer.text[7:])
    for message in (heard, edited):
        expected = ask(engine, "reader", question, message)
        for spans in (("no tag",), answer.spans, (*answer.spans, "no tag")):
            got = ask(other, "reader", question, replace(message, spans=spans))
            assert got.token_ids == expected.token_ids
            other.forget()
    engine.close()
    other.close()


def test_exact_engines_keep_no_spans_and_name_none(engine: Engine) -> None:
    assert ask(engine, "solver", Message("user", "hello", spans=("some tag",))).spans == ()
