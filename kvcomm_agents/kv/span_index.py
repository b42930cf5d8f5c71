"""SpanIndex: which runs of a prompt are runs of spans seen before.

Every span is cut into grams of `window` tokens, one after the other; a table maps each gram's hash to
the places it came from. The hash is rolled over the prompt, each hit is checked token by token and
extended both ways, so a match is never wrong, and any common run of `2 * window - 1` tokens holds a
whole gram and is found wherever it stands.

Memory: about 20 bytes a known token at `window=8` (4 for its id, the rest its share of a gram).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

Ids = NDArray[np.int32]

_BASE = 0x9E3779B97F4A7C15  # odd, so that powers of it never vanish modulo 2**64
_BITS = 32  # a place is `span << _BITS | offset`
_HEADS = ((0, 0), (1, 1), (0, 1), (1, 0), (2, 2), (1, 2), (2, 1))  # first tokens that may be split in another way


@dataclass(frozen=True, slots=True)
class SpanMatch:
    """Tokens `start:stop` of the prompt are tokens `offset:offset + stop - start` of a known span."""

    start: int
    stop: int
    span: int
    offset: int


@dataclass(slots=True)
class _Known:
    raw: bytes  # its ids as int32: equal runs are compared at the speed of memcmp
    ids: Ids
    order: int  # when it was added


class SpanIndex:
    """Finds known spans, and parts of them, in prompts by their token ids. Not thread-safe.

    Args:
        window: tokens of a gram. Common runs shorter than `2 * window - 1` may go unseen.
        min_span: tokens; shorter spans are not kept and shorter runs not reported.
        candidates: places remembered of one gram, the latest; a quarter of them at most in one span.
            This bounds the work on text that is everywhere: such a gram alone may miss an old span,
            which its other grams still find.

    Raises:
        ConfigError: `window` below 1, `min_span` below `window`, or `candidates` below 4.
    """

    def __init__(self, *, window: int = 8, min_span: int = 16, candidates: int = 16) -> None:
        if window < 1:
            raise ConfigError(f"window={window} must be at least 1 token")
        if min_span < window:
            raise ConfigError(f"min_span={min_span} must be at least the window of {window} tokens")
        if candidates < 4:
            raise ConfigError(f"candidates={candidates} must be at least 4")
        self.window, self.min_span, self.candidates = window, min_span, candidates
        self._spans: dict[int, _Known] = {}
        self._places: dict[int, int | list[int]] = {}  # a list only where there are several: most grams are unique
        self._added = 0
        self._powers = np.array([pow(_BASE, i + 1, 1 << 64) for i in range(window)], dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, span: object) -> bool:
        return span in self._spans

    def add(self, span: int, ids: Sequence[int] | Ids) -> None:
        """Know a span from now on. Replaces what was known under its id; too short spans are ignored."""
        self.remove(span)
        array = np.array(ids, dtype=np.int32)
        if len(array) < self.min_span:
            return
        raw = array.tobytes()
        self._added += 1
        self._spans[span] = _Known(raw, np.frombuffer(raw, dtype=np.int32), self._added)
        places = self._places
        for index, gram in enumerate(self._grams(array)):
            place = (span << _BITS) | (index * self.window)
            held = places.get(gram)
            if held is None:
                places[gram] = place
            elif isinstance(held, int):
                places[gram] = [held, place]
            else:
                own = self.candidates // 4
                if len(held) >= own and held[-own] >> _BITS == span:
                    continue  # a repetitive span must not push all others out
                held.append(place)
                if len(held) > self.candidates:
                    del held[0]

    def remove(self, span: int) -> None:
        """Forget a span; does nothing if it is not known."""
        known = self._spans.pop(span, None)
        if known is None:
            return
        for gram in set(self._grams(known.ids)):
            held = self._places.get(gram)
            if held is None:
                continue
            left = [place for place in ([held] if isinstance(held, int) else held) if place >> _BITS != span]
            if not left:
                del self._places[gram]
            else:
                self._places[gram] = left[0] if len(left) == 1 else left

    def align(self, ids: Sequence[int] | Ids, start: int, stop: int, span: int) -> SpanMatch | None:
        """The run of a span that `ids[start:stop]` begins with, a token or two at the very beginning aside.

        `None` if it is shorter than `min_span`: what stands there was changed.
        """
        array = np.array(ids[start:stop], dtype=np.int32)
        raw, known = array.tobytes(), self._spans[span]
        for at, offset in _HEADS:
            if at < len(array) and offset < len(known.ids):
                tokens = _agreeing_after(raw, array, at, known, offset)
                if tokens >= self.min_span:
                    return SpanMatch(start + at, start + at + tokens, span, offset)
        return None

    def find(
        self,
        ids: Sequence[int] | Ids,
        start: int = 0,
        prefer: Collection[int] = (),
        pinned: Sequence[SpanMatch] = (),
    ) -> list[SpanMatch]:
        """Known runs in a prompt: not overlapping, in prompt order, each at least `min_span` tokens.

        The longest run wins where several compete, and the others keep what it leaves them. Among
        equals a preferred span wins (even if it is up to two windows shorter), then a span that is
        there as a whole, then the one added last.

        Args:
            ids: token ids of the prompt.
            start: nothing before this token is matched.
            prefer: ids of spans that the caller knows to be in the prompt.
            pinned: matches that the caller has made already, at or after `start`, in prompt order,
                not overlapping. They are returned with what is found around them.
        """
        array = np.asarray(ids, dtype=np.int32)[start:]
        if len(array) < self.min_span or not self._spans:
            return []
        preferred = frozenset(prefer)
        pins = [SpanMatch(m.start - start, m.stop - start, m.span, m.offset) for m in pinned]
        chosen = self._choose(self._runs(np.ascontiguousarray(array)), preferred, pins)
        return [SpanMatch(m.start + start, m.stop + start, m.span, m.offset) for m in chosen]

    def _grams(self, ids: Ids) -> list[int]:
        """Hashes of the grams of a span, at offsets 0, window, 2 * window, ..."""
        whole = len(ids) // self.window * self.window
        table = ids[:whole].astype(np.uint64).reshape(-1, self.window)
        hashes: list[int] = (table * self._powers).sum(axis=1, dtype=np.uint64).tolist()
        return hashes

    def _rolling(self, ids: Ids) -> list[int]:
        """The hash of the gram at every position of a prompt."""
        tokens, last = ids.astype(np.uint64), len(ids) - self.window + 1
        total = tokens[:last] * self._powers[0]
        for i in range(1, self.window):
            total += tokens[i : last + i] * self._powers[i]
        hashes: list[int] = total.tolist()
        return hashes

    def _runs(self, ids: Ids) -> Iterator[SpanMatch]:
        """Maximal common runs: all that can win a place, not all there are.

        Inside a run already found only runs that begin about where it does (they may tie with it)
        or outlast it by a window can win, so the positions between are skipped.
        """
        raw, window, get = ids.tobytes(), self.window, self._places.get
        hits = [(at, held) for at, gram in enumerate(self._rolling(ids)) if (held := get(gram)) is not None]
        stops: dict[int, int] = {}  # by diagonal, span and shift: how far it has been compared
        covered = closing = 0
        budget = 16 * self.candidates + len(ids) // 4  # extensions; past it, one a position
        for at, held in hits:
            outside = at + window > covered
            if not outside and (at >= closing or budget <= 0):
                continue
            places = [held] if isinstance(held, int) else held[::-1]
            opened = False
            for place in places if budget > 0 else places[:1]:
                diagonal = place - at
                if stops.get(diagonal, 0) > at:
                    continue
                budget -= 1
                span, offset = place >> _BITS, place & ((1 << _BITS) - 1)
                known = self._spans[span]
                left = _agreeing_before(raw, ids, at, known, offset)
                stop = at + _agreeing_after(raw, ids, at, known, offset)
                stops[diagonal] = max(stop, at + 1)
                if stop - at + left < self.min_span:
                    continue
                covered, opened = max(covered, stop), True
                yield SpanMatch(at - left, stop, span, offset - left)
            if opened and outside:
                closing = at + 4 * window

    def _choose(
        self, runs: Iterator[SpanMatch], preferred: frozenset[int], pins: Sequence[SpanMatch]
    ) -> list[SpanMatch]:
        def ranked(run: SpanMatch) -> tuple[int, bool, bool, int, int, int, SpanMatch]:
            known, length = self._spans[run.span], run.stop - run.start
            tagged, whole = run.span in preferred, length == len(known.ids)
            effective = length + (2 * self.window if tagged else 0)
            # `start` and `offset` make the order total
            return (-effective, not tagged, not whole, -known.order, run.start, run.offset, run)

        waiting = [ranked(run) for run in runs]
        heapq.heapify(waiting)
        chosen = list(pins)
        starts = [run.start for run in chosen]  # both in prompt order
        while waiting:
            run = heapq.heappop(waiting)[-1]
            index = bisect_left(starts, run.start)
            begin = max(run.start, chosen[index - 1].stop) if index else run.start
            end = run.stop
            if index < len(starts) and starts[index] < run.stop:
                end = starts[index]
                if run.stop - chosen[index].stop >= self.min_span:  # a shorter preferred span stands inside
                    heapq.heappush(waiting, ranked(_cut(run, chosen[index].stop, run.stop)))
            if end - begin < self.min_span:
                continue
            if (begin, end) != (run.start, run.stop):  # shorter now: its turn may come later
                heapq.heappush(waiting, ranked(_cut(run, begin, end)))
                continue
            starts.insert(index, begin)
            chosen.insert(index, run)
        return chosen


def _cut(run: SpanMatch, start: int, stop: int) -> SpanMatch:
    return SpanMatch(start, stop, run.span, run.offset + start - run.start)


def _agreeing_after(raw: bytes, ids: Ids, at: int, known: _Known, offset: int) -> int:
    """Equal tokens from here on."""
    n = min(len(ids) - at, len(known.ids) - offset)
    if raw[4 * at : 4 * (at + n)] == known.raw[4 * offset : 4 * (offset + n)]:
        return n
    return _first_difference(ids[at : at + n], known.ids[offset : offset + n])


def _agreeing_before(raw: bytes, ids: Ids, at: int, known: _Known, offset: int) -> int:
    """Equal tokens up to here."""
    n = min(at, offset)
    if raw[4 * (at - n) : 4 * at] == known.raw[4 * (offset - n) : 4 * offset]:
        return n
    return _first_difference(ids[at - n : at][::-1], known.ids[offset - n : offset][::-1])


def _first_difference(a: Ids, b: Ids) -> int:
    """Length of the common prefix of two runs that differ, compared in growing steps."""
    start, step = 0, 64
    while start < len(a):
        different = a[start : start + step] != b[start : start + step]
        first = int(different.argmax())
        if different[first]:
            return start + first
        start, step = start + step, step * 8
    return len(a)
