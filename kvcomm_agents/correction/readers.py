"""Readers: which slots read what a voice says, and how often. It tells what to correct before it is asked for."""

from __future__ import annotations

from collections import Counter, defaultdict

from ..kv.slot import Slot
from ..kv.span_library import Span

_OFTEN = 0.25  # of an agent's usual slot: one that reads a voice more seldom is not prepared for


class Readers:
    """Counts of slots by voice: what an agent writes, or what stands first in its prompts."""

    def __init__(self) -> None:
        self._slots: defaultdict[str, Counter[Slot]] = defaultdict(Counter)

    def learn(self, span: Span, slot: Slot) -> None:
        """A span was read at a slot."""
        self._slots[_voice(span)][slot] += 1

    def usual(self, span: Span, agent: str) -> Slot | None:
        """Where an agent reads this voice most often; `None` if it never did."""
        slots = self._slots.get(_voice(span), Counter[Slot]())
        return max((slot for slot in slots if slot.agent == agent), key=lambda slot: slots[slot], default=None)

    def often(self, span: Span) -> list[Slot]:
        """The slots that read this voice often, for each of its readers."""
        slots = self._slots.get(_voice(span), Counter[Slot]())
        most: Counter[str] = Counter()
        for slot, count in slots.items():
            most[slot.agent] = max(most[slot.agent], count)
        return [slot for slot, count in slots.items() if count >= _OFTEN * most[slot.agent]]


def _voice(span: Span) -> str:
    """Who a span comes from: slots are read by the same voices again and again."""
    return f"{span.origin}:{span.producer}"
