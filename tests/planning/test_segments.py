"""Prompts are cut where their texts come from, and slots stay put when other text changes."""

from __future__ import annotations

import torch

from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.span_library import SpanLibrary
from kvcomm_agents.planning.segments import after, competing, segment

QUESTION, ANSWER, OTHER = list(range(100, 130)), list(range(200, 240)), list(range(300, 330))
SYSTEM, MIDDLE, TAIL = list(range(0, 20)), list(range(20, 34)), list(range(40, 48))


def block(tokens: int) -> KVBlock:
    return KVBlock(torch.zeros(1, 1, tokens, 2), torch.zeros(1, 1, tokens, 2))


def library() -> SpanLibrary:
    known = SpanLibrary(1 << 20, min_span=12)
    question = known.add(QUESTION, block(30), producer="solver", origin="prompt", exact=True)
    assert question is not None
    sources = frozenset({question.id})
    known.add(ANSWER, block(40), producer="solver", origin="output", exact=True, sources=sources)
    known.add(OTHER, block(30), producer="other", origin="output", exact=True, sources=sources)
    return known


def test_kinds_cover_the_prompt() -> None:
    known, ids = library(), [*SYSTEM, *QUESTION, *MIDDLE, *ANSWER, *TAIL]
    known.add(MIDDLE, block(14), producer="critic", origin="prompt", exact=True)
    cut = segment(ids, "critic", known)
    assert [(one.kind, one.tokens) for one in cut] == [
        ("new", 20),
        ("span", 30),
        ("static", 14),
        ("span", 40),
        ("new", 8),
    ]
    assert [one.start for one in cut] == [0, 20, 50, 64, 104]
    assert [one.slot is not None for one in cut] == [False, True, False, True, False]
    # The same text in another agent's prompt is a span there.
    assert segment([*SYSTEM, *MIDDLE], "reviewer", known)[1].kind == "span"


def test_slots_are_places_and_survive_changes_elsewhere() -> None:
    known = library()
    slots = [one.slot for one in segment([*SYSTEM, *QUESTION, *MIDDLE, *ANSWER], "critic", known) if one.slot]
    edited = [*SYSTEM[:5], 77, 78, *SYSTEM[5:], *QUESTION, 55, *MIDDLE, *OTHER, *TAIL]
    assert [one.slot for one in segment(edited, "critic", known) if one.slot] == slots
    assert slots[0] != slots[1]
    repeated = [one.slot for one in segment([*SYSTEM, *QUESTION, *SYSTEM, *QUESTION], "critic", known) if one.slot]
    assert repeated[0] != repeated[1]


def test_a_lost_first_token_keeps_the_slot() -> None:
    known = library()
    whole = segment([*SYSTEM, *ANSWER], "critic", known)[-1]
    merged = segment([*SYSTEM, 999, *ANSWER[1:]], "critic", known)[-1]
    assert (merged.offset, merged.tokens, merged.slot) == (1, 39, whole.slot)


def test_after_cuts_within_a_span() -> None:
    known = library()
    cut = after(segment([*SYSTEM, *QUESTION, *TAIL], "critic", known), 25)
    assert [(one.kind, one.start, one.offset, one.tokens) for one in cut] == [("span", 25, 5, 25), ("new", 50, 0, 8)]


def test_answers_compete_if_neither_author_read_the_other() -> None:
    known = library()
    assert competing(segment([*ANSWER, *MIDDLE, *OTHER], "judge", known), known)
    assert not competing(segment([*QUESTION, *MIDDLE, *ANSWER], "critic", known), known)
    chained = SpanLibrary(1 << 20, min_span=12)
    q = chained.add(QUESTION, block(30), producer="a", origin="prompt", exact=True)
    assert q is not None
    first = chained.add(ANSWER, block(40), producer="a", origin="output", exact=True, sources=frozenset({q.id}))
    assert first is not None
    chained.add(OTHER, block(30), producer="b", origin="output", exact=True, sources=frozenset({q.id, first.id}))
    assert not competing(segment([*ANSWER, *MIDDLE, *OTHER], "c", chained), chained)


def test_an_agents_own_calls_are_no_candidates_before_it() -> None:
    known = SpanLibrary(1 << 20, min_span=12)
    question = known.add(QUESTION, block(30), producer="a", origin="prompt", exact=True)
    assert question is not None
    for ids, agent in ((ANSWER, "a"), (OTHER, "b")):
        known.add(ids, block(len(ids)), producer=agent, origin="output", exact=True, sources=frozenset({question.id}))
    prompt, first = [*ANSWER, *MIDDLE, *OTHER], (0, len(ANSWER))
    last = (len(ANSWER) + len(MIDDLE), len(prompt))
    assert not competing(segment(prompt, "a", known), known, [last]), "what a wrote stands in no message: a call"
    assert competing(segment(prompt, "a", known), known, [first, last]), "an answer of its own"
    assert competing(segment(prompt, "a", known), known), "nobody knows where messages stand"
    assert competing(segment(prompt, "c", known), known, [last]), "c is shown both"


def test_answers_compete_although_their_source_has_another_donor_now() -> None:
    known = SpanLibrary(1 << 20, min_span=12)
    rough = known.add(QUESTION, block(30), producer="a", origin="prompt", exact=False)
    assert rough is not None
    known.add(ANSWER, block(40), producer="a", origin="output", exact=False, sources=frozenset({rough.id}))
    exact = known.add(QUESTION, block(30), producer="b", origin="prompt", exact=True)
    assert exact is not None
    known.add(OTHER, block(30), producer="b", origin="output", exact=True, sources=frozenset({exact.id}))
    assert competing(segment([*ANSWER, *MIDDLE, *OTHER], "c", known), known)


def test_library_stays_within_its_budget_and_prefers_exact_donors() -> None:
    known = SpanLibrary(3 * block(30).nbytes, min_span=12)
    rough = known.add(QUESTION, block(30), producer="a", origin="prompt", exact=False)
    exact = known.add(QUESTION, block(30), producer="b", origin="prompt", exact=True)
    again = known.add(QUESTION, block(30), producer="c", origin="prompt", exact=False)
    assert rough is not None
    assert exact is not None
    assert exact is again
    assert known[rough.id] is exact
    for start in range(1000, 1400, 40):
        known.add(list(range(start, start + 30)), block(30), producer="a", origin="prompt", exact=True)
        assert known.nbytes <= 3 * block(30).nbytes
    assert exact.id not in known
    assert known.find(QUESTION, 0) == []
    assert known.add([1, 2, 3], block(3), producer="a", origin="prompt", exact=True) is None


def test_what_an_agent_reads_again_is_static_whoever_had_it_first() -> None:
    known, ids = library(), [*SYSTEM, *QUESTION, *ANSWER]
    (question,) = (span for span in known.spans() if span.origin == "prompt")
    known.mark_read(question.id, "critic", 0, 18)
    cut = segment(ids, "critic", known)
    assert [(one.kind, one.start, one.offset) for one in cut[1:]] == [
        ("static", 20, 0),
        ("span", 38, 18),
        ("span", 50, 0),  # an answer never is, however often it is read
    ]
    assert segment(ids, "reviewer", known)[1].kind == "span"


def test_own_text_that_an_answer_repeats_stays_own_text() -> None:
    known = library()
    known.add(MIDDLE, block(14), producer="critic", origin="prompt", exact=True)
    known.add([*ANSWER[:9], *MIDDLE, *OTHER[:8]], block(31), producer="solver", origin="output", exact=True)
    cut = segment([*QUESTION, *MIDDLE, *OTHER], "critic", known)
    assert [(one.kind, one.tokens) for one in cut] == [("span", 30), ("static", 14), ("span", 30)]


def test_the_same_words_of_two_agents_have_a_donor_each() -> None:
    known = library()
    (first,) = (span.id for span in known.spans() if span.producer == "solver" and span.origin == "output")
    again = known.add(ANSWER, block(40), producer="parrot", origin="output", exact=False)
    assert again is not None
    assert again.id != first
    cut = segment([*SYSTEM, *ANSWER, *MIDDLE, *ANSWER], "critic", known)
    assert [one.span for one in cut if one.kind == "span"] == [first, again.id]
    exact = known.add(ANSWER, block(40), producer="parrot", origin="output", exact=True)
    assert exact is not None
    cut = segment([*SYSTEM, *ANSWER, *MIDDLE, *ANSWER, *MIDDLE, *ANSWER], "critic", known)
    assert [one.span for one in cut if one.kind == "span"] == [first, exact.id, exact.id]
    for number in range(9):
        known.add(ANSWER, block(40), producer=f"agent {number}", origin="output", exact=True)
    assert sum(len(span.ids) == 40 for span in known.spans()) == 4
    assert known.nbytes == sum(span.base.nbytes for span in known.spans())
