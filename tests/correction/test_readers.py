"""Readers: what is corrected ahead is what will be asked for."""

from __future__ import annotations

import torch
from two_agents import QUESTIONS, chain, made, make_speaker

from kvcomm_agents.correction.readers import Readers
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot
from kvcomm_agents.kv.span_library import Span, SpanLibrary


def spoken(producer: str) -> Span:
    base = KVBlock(torch.zeros(2, 1, 20, 4), torch.zeros(2, 1, 20, 4))
    span = SpanLibrary(1 << 20, 12).add(range(20), base, producer=producer, origin="output", exact=True)
    assert span is not None
    return span


def test_the_usual_slot_is_the_one_read_most_and_seldom_ones_are_not_prepared_for() -> None:
    readers, said = Readers(), spoken("solver")
    usual, second, once, other = Slot("critic", "a"), Slot("critic", "b"), Slot("critic", "c"), Slot("judge", "a")
    assert readers.usual(said, "critic") is None
    assert readers.often(said) == []
    for slot, times in ((usual, 8), (second, 2), (once, 1), (other, 1)):
        for _ in range(times):
            readers.learn(said, slot)
    assert readers.usual(said, "critic") == usual
    assert readers.usual(said, "judge") == other
    assert readers.usual(said, "editor") is None
    assert readers.usual(spoken("writer"), "critic") is None
    assert readers.often(said) == [usual, second, other]


def test_a_place_never_learned_from_takes_the_correction_that_was_made_ahead() -> None:
    engine = made(make_speaker(), mode="corrected")
    for question in QUESTIONS[:6]:
        first, _ = chain(engine, question, reuse="exact")
    memory = engine.inspect(lambda core: core.policy.namespace("default"))
    ids = tuple(first.token_ids[:-1])
    said = next(span for span in memory.library.spans() if tuple(span.ids) == ids and span.producer == "solver")
    usual = memory.corrections.readers.usual(said, "critic")
    assert usual is not None
    ahead = memory.corrections.prepare(said, usual)
    assert memory.corrections.prepare(said, Slot("critic", "behind a passage")) is ahead
    assert memory.corrections.prepare(said, Slot("stranger", "behind a passage")) is not ahead
    engine.close()
