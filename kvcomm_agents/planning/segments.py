"""Segments: a prompt cut into what is shared, what its agent always says, and what is new."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ..kv.slot import Slot
from ..kv.span_index import SpanMatch
from ..kv.span_library import Span, SpanLibrary, Tagged

Kind = Literal["new", "static", "span"]

_CONTEXT = 8  # tokens before a span that tell which place it stands in
_MAX_ORDINAL = 3  # later repetitions of one place are one slot


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `start:stop` of a prompt.

    `new` text was never seen. `static` text stood in this agent's own prompts before and recurs.
    A `span` was written by an agent, or stood in other agents' prompts only.

    Args:
        span: id in the library; -1 for new text.
        offset: the segment's first token is this token of the span.
        slot: where a span lands; `None` for other kinds.
        producer: the agent whose context a span's donor is.
        written: whether the producer wrote the span, rather than read it.
        warmed: whether its base was warmed, and has no donor.
    """

    start: int
    stop: int
    kind: Kind
    span: int = -1
    offset: int = 0
    slot: Slot | None = None
    producer: str = field(default="", compare=False)
    written: bool = field(default=False, compare=False)
    warmed: bool = field(default=False, compare=False)

    @property
    def tokens(self) -> int:
        """Its length."""
        return self.stop - self.start


def segment(
    ids: Sequence[int],
    agent: str,
    library: SpanLibrary,
    cuts: Sequence[int] = (),
    tagged: Sequence[Tagged] = (),
) -> tuple[Segment, ...]:
    """Cut a prompt into segments, in order and without gaps.

    Args:
        ids: token ids of the prompt.
        agent: whose prompt.
        library: the spans of its namespace.
        cuts: where messages begin and end: new text is cut there, so that each message is a span of its own.
        tagged: messages that carry the tag of a span: they are that span as far as their tokens are.
    """
    found: list[Segment] = []
    seen: Counter[str] = Counter()
    told: Counter[int] = Counter()
    at = 0
    # An answer may repeat what stands in every prompt: there it is the prompt's own text all the same.
    pins = library.pin(ids, tagged)
    for match in library.find(ids, 0, {*(pin.span for pin in pins), *library.texts_of(agent)}, pins):
        if match.start > at:
            found += _new(at, match.start, cuts)
        # The same words once more are, in a transcript, those of who said them next.
        words = library.twin(match.span, 0)
        told[words] += match.offset <= 1  # else it goes on where it was interrupted
        span = match.span if match in pins else library.twin(match.span, max(told[words] - 1, 0))
        for first, stop, own in _parts(match, library[span], agent):
            offset, slot = match.offset + first - match.start, None
            if not own:
                place = _place(ids, found, first - (offset if offset <= 1 else 0))
                slot = Slot(agent, f"{place}.{min(seen[place], _MAX_ORDINAL)}")
                seen[place] += 1
            kind: Kind = "static" if own else "span"
            known = library[span]
            written = known.origin == "output"
            found.append(Segment(first, stop, kind, span, offset, slot, known.producer, written, known.warmed))
        at = match.stop
    if at < len(ids):
        found += _new(at, len(ids), cuts)
    return tuple(found)


def _parts(match: SpanMatch, span: Span, agent: str) -> Iterator[tuple[int, int, bool]]:
    """A match as `(start, stop, static)`: what no agent wrote is static from the second time an agent reads it."""
    read = span.read.get(agent) if span.origin == "prompt" else None
    if read is None or span.producer == agent:
        yield match.start, match.stop, span.origin == "prompt" and span.producer == agent
        return
    before = read[match.offset : match.offset + match.stop - match.start]
    edges = [0, *(np.flatnonzero(before[1:] != before[:-1]) + 1).tolist(), len(before)]
    for first, stop in zip(edges, edges[1:], strict=False):
        yield match.start + first, match.start + stop, bool(before[first])


def _new(start: int, stop: int, cuts: Sequence[int]) -> list[Segment]:
    edges = [start, *sorted({cut for cut in cuts if start < cut < stop}), stop]
    return [Segment(a, b, "new") for a, b in zip(edges, edges[1:], strict=False)]


def after(segments: Sequence[Segment], start: int) -> tuple[Segment, ...]:
    """The part of the segments that lies at or after `start`."""
    cut = []
    for one in segments:
        lost = max(start - one.start, 0)
        if lost < one.tokens:
            cut.append(replace(one, start=one.start + lost, offset=one.offset + lost if one.span >= 0 else 0))
    return tuple(cut)


def _place(ids: Sequence[int], before: Sequence[Segment], start: int) -> str:
    """A name for the place at `start`: the few tokens before it that belong to no span."""
    last_span = max((one.stop for one in before if one.kind == "span"), default=0)
    context = ids[max(start - _CONTEXT, last_span, 0) : start]
    return hashlib.blake2b(repr(tuple(context)).encode(), digest_size=6).hexdigest()


def competing(segments: Sequence[Segment], library: SpanLibrary, contents: Sequence[tuple[int, int]] = ()) -> bool:
    """Whether a prompt puts answers side by side whose authors did not see each other's.

    Two agents' outputs compete if both read a common source and neither read the other: candidates
    before a judge, a voter or a selector.

    Args:
        segments: of the prompt.
        library: the spans of its namespace.
        contents: `(start, stop)` of its messages. What the reader itself wrote outside of them is a call
            that the template wrote down, and no candidate; other agents are seldom shown it.
    """
    outputs = {one.span: library[one.span] for one in segments if one.kind == "span" and not _called(one, contents)}
    spans = [span for span in outputs.values() if span.origin == "output"]
    return any(
        a.sources & b.sources and a.id not in b.sources and b.id not in a.sources
        for index, a in enumerate(spans)
        for b in spans[:index]
    )


def _called(one: Segment, contents: Sequence[tuple[int, int]]) -> bool:
    """Whether a segment is a call of the agent whose prompt it stands in."""
    if not contents or one.slot is None or not one.written or one.producer != one.slot.agent:
        return False
    inside = sum(max(min(one.stop, stop) - max(one.start, start), 0) for start, stop in contents)
    return 2 * inside < one.tokens
