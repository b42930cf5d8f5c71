"""Every rung's plan covers the prompt, computes what it says, and places only what it was given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.kv.slot import Slot
from kvcomm_agents.plan import Computed, Placed
from kvcomm_agents.planning.ladder import BY_NAME, LADDER, LONG_STATIC, Rung, Sources, corrected_plan
from kvcomm_agents.planning.segments import Kind, Segment

pieces = st.lists(st.tuples(st.sampled_from(["new", "static", "span"]), st.integers(1, 200), st.booleans()), min_size=1)


def marked(start: int, tokens: int, kind: float) -> KVBlock:
    marks = torch.arange(start, start + tokens).float()[None, None, :, None]
    return KVBlock(marks, torch.full_like(marks, kind))


def laid_out(kinds: list[tuple[Kind, int, bool]], start: int) -> tuple[list[Segment], Sources]:
    """Segments and sources whose keys say where they stand, and whose values which source they are of."""
    segments, raw, static, mapped = list[Segment](), dict[int, KVBlock](), dict[int, KVBlock](), dict[int, KVBlock]()
    for index, (kind, tokens, known) in enumerate(kinds):
        slot = Slot("a", "b") if kind == "span" else None
        segments.append(Segment(start, start + tokens, kind, -1 if kind == "new" else index, 0, slot))
        if known and kind != "new":
            raw[index] = marked(start, tokens, 1.0)
            (mapped if kind == "span" else static)[index] = marked(start, tokens, 2.0 if kind == "span" else 3.0)
        start += tokens
    return segments, Sources(raw, static, mapped)


@given(pieces, st.integers(0, 30), st.sampled_from([1, 16]))
def test_rungs(kinds: list[tuple[Kind, int, bool]], prefix: int, block: int) -> None:
    held = torch.zeros(1, 1, prefix, 1)
    stored = [Placed(0, prefix, KVBlock(held, held, 0), exact=True)] if prefix else []
    segments, sources = laid_out(kinds, prefix)
    length = segments[-1].stop
    for rung in LADDER:
        plan = corrected_plan(length, stored, segments, sources, rung, 6, block)
        assert plan.length == length
        runs = plan.runs
        for before, run in zip((None, *runs), runs, strict=False):
            if isinstance(run, Computed) or run.exact:
                continue
            if isinstance(before, Computed):
                assert run.start % block == 0
            segment = next(s for s in segments if s.start <= run.start and run.stop <= s.stop)
            assert run.block.keys.flatten().tolist() == list(range(run.start, run.stop))
            assert run.stop - run.start >= 6
            assert run.stop <= length - rung.least
            kind = float(run.block.values.flatten()[0])
            if segment.kind == "span":
                assert kind == (2.0 if rung.maps else 1.0)
                assert run.start - segment.start >= rung.head(segment)
            elif rung.static:
                assert kind == 3.0
            else:
                assert segment.tokens >= LONG_STATIC
                assert run.start - segment.start >= rung.heads


@given(pieces)
def test_more_heads_compute_more(kinds: list[tuple[Kind, int, bool]]) -> None:
    segments, sources = laid_out(kinds, 0)
    for names in (("raw6", "raw16", "raw32", "raw64"), ("map0 static", "map6 static", "map16 static")):
        computed = [
            corrected_plan(segments[-1].stop, [], segments, sources, BY_NAME[name], 6).computed_tokens for name in names
        ]
        assert computed == sorted(computed)


@given(pieces, st.sampled_from(LADDER))
def test_blocks_only_compute_more(kinds: list[tuple[Kind, int, bool]], rung: Rung) -> None:
    segments, sources = laid_out(kinds, 0)
    length = segments[-1].stop
    plain = corrected_plan(length, [], segments, sources, rung, 6)
    aligned = corrected_plan(length, [], segments, sources, rung, 6, 16)
    assert aligned.computed_tokens >= plain.computed_tokens


def test_long_own_text_behind_changed_words_is_placed_and_short_is_not() -> None:
    segments, sources = laid_out([("new", 20, False), ("static", 400, True), ("new", 20, False)], 0)
    (run,) = corrected_plan(440, [], segments, sources, BY_NAME["raw32"], 6).placed
    assert (run.start, run.stop) == (52, 376)  # behind its head, before the prompt's end
    segments, sources = laid_out([("new", 20, False), ("static", LONG_STATIC - 1, True), ("new", 90, False)], 0)
    assert not corrected_plan(173, [], segments, sources, BY_NAME["raw32"], 6).placed


def test_a_third_of_a_long_span_is_computed() -> None:
    segments, sources = laid_out([("span", 1000, True), ("new", 20, False)], 0)
    (run,) = corrected_plan(1020, [], segments, sources, BY_NAME["raw third"], 6).placed
    assert run.start == 300


def test_more_is_computed_of_what_was_warmed() -> None:
    segments, sources = laid_out([("span", 300, True), ("new", 20, False)], 0)
    warmed = [replace(segments[0], warmed=True), segments[1]]
    for rung in LADDER:
        (run,) = corrected_plan(320, [], warmed, sources, rung, 6).placed
        assert run.start == 2 * max(rung.heads, round(rung.share * 300))


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: rung.name)
def test_the_end_is_computed_whatever_it_is(rung: Rung) -> None:
    segments, sources = laid_out([("span", 140, True), ("static", 120, True), ("span", 140, True)], 0)
    (*_, last) = corrected_plan(400, [], segments, sources, rung, 6).runs
    assert isinstance(last, Computed)
    assert last.stop == 400
    assert last.start <= 400 - rung.least
