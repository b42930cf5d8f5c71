"""SlotTable: what a corrector has learned, slot by slot, within a byte budget.

A growing conversation makes new slots for ever. The least recently used slot goes first, but into a
remainder of its agent rather than away: the slot is forgotten, what it taught about the agent is not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, Self, TypeVar

from ..kv.slot import Slot

_REMAINDER = "\0remainder"


class Sums(Protocol):
    """Running sums over examples, which add up across slots."""

    examples: int

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...

    def merge(self, other: Self) -> None:
        """Add another's sums to these."""
        ...


S = TypeVar("S", bound=Sums)


class SlotTable(Generic[S]):
    """Sums by slot, least recently used first.

    Args:
        budget: bytes; the newest slot stays even if it alone is larger.
        new: makes empty sums.
    """

    def __init__(self, budget: int, new: Callable[[], S]) -> None:
        self.budget, self._new = budget, new
        self._slots: OrderedDict[Slot, S] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, slot: Slot) -> S | None:
        """The slot's own sums, now its most recently used."""
        found = self._slots.get(slot)
        if found is not None:
            self._slots.move_to_end(slot)
        return found

    def make(self, slot: Slot) -> S:
        """The slot's own sums, empty if it is new."""
        found = self.get(slot)
        if found is None:
            found = self._slots[slot] = self._new()
        return found

    def of_reader(self, reader: Slot) -> list[S]:
        """Every slot of an agent, its remainder included."""
        return [sums for slot, sums in self._slots.items() if slot.reader == reader]

    def total(self, reader: Slot) -> S | None:
        """A new sum over an agent's slots; `None` if it has none."""
        parts = self.of_reader(reader)
        if not parts:
            return None
        total = self._new()
        for part in parts:
            total.merge(part)
        return total

    def knows(self, slot: Slot) -> int:
        """Examples of the slot, else of its agent."""
        own = self._slots.get(slot)
        return own.examples if own is not None else sum(part.examples for part in self.of_reader(slot.reader))

    def shrink(self) -> None:
        """Fold the least recently used slots into their agents' remainders until the budget holds."""
        while len(self._slots) > 1 and self.nbytes > self.budget:
            newest = next(reversed(self._slots))
            slot, sums = self._slots.popitem(last=False)
            # An agent of which nothing else is left is idle, and goes.
            if slot.place != _REMAINDER and self.of_reader(slot.reader):
                self._slots.setdefault(Slot(slot.agent, _REMAINDER, slot.warmed), self._new()).merge(sums)
                self._slots.move_to_end(newest)

    def drop(self, nbytes: int) -> None:
        """Drop slots, least recently used first, until so many bytes at most are held: what they taught is gone."""
        while self._slots and self.nbytes > nbytes:
            self._slots.popitem(last=False)

    def forget(self, agent: str | None) -> None:
        """Drop an agent, or everything."""
        for slot in [slot for slot in self._slots if agent is None or slot.agent == agent]:
            del self._slots[slot]

    def items(self) -> Iterator[tuple[Slot, S]]:
        """Slots and their sums, least recently used first."""
        yield from list(self._slots.items())

    @property
    def nbytes(self) -> int:
        """Bytes of all sums."""
        return sum(sums.nbytes for sums in self._slots.values())
