"""AnchorPool: the examples that corrections are learned from, found by sentence embedding."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import GiB
from ..kv.slot import Slot
from ..log import get_logger
from .base import Example
from .flat import owned
from .saved.anchor_file import Snapshot, read_anchors
from .saved.manifest import Owner

logger = get_logger(__name__)

_HALF_LIFE = 256
"""Additions and look-ups after which an anchor nobody asked for counts half."""


@dataclass(slots=True, eq=False)
class _Anchor:
    slot: Slot
    example: Example
    used: int
    hits: int = 0


class AnchorPool:
    """Examples by slot, within a byte budget. Thread-safe.

    What goes first is what is least useful: seldom found, close to another anchor of its slot, long ago.

    Args:
        budget: bytes of all examples.
        fingerprint: names the model and tokenizer; a saved pool loads only under the same one.
    """

    def __init__(self, budget: int = GiB, fingerprint: str = "") -> None:
        self.budget, self.fingerprint = budget, fingerprint
        self._anchors: list[_Anchor] = []
        self._bytes = self._clock = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._anchors)

    def __iter__(self) -> Iterator[tuple[Slot, Example]]:
        """Slots and examples, oldest first: what a corrector learns to catch up."""
        with self._lock:
            yield from [(anchor.slot, anchor.example) for anchor in self._anchors]

    @property
    def nbytes(self) -> int:
        """Bytes of all examples."""
        return self._bytes

    def add(self, slot: Slot, example: Example) -> bool:
        """Keep an example. `False` if it alone is larger than the budget."""
        embedding = None if example.embedding is None else example.embedding.detach().float().clone()
        example = Example(owned(example.base), owned(example.true), embedding, example.weight, example.offset)
        if example.nbytes > self.budget:
            return False
        with self._lock:
            self._clock += 1
            self._anchors.append(_Anchor(slot, example, self._clock))
            self._bytes += example.nbytes
            self._shrink()
        return True

    def shrink(self, nbytes: int) -> None:
        """Forget anchors, the least useful first, until no more than so many bytes are held."""
        with self._lock:
            order = sorted(
                zip(self._anchors, self._distinctness(), strict=True), key=lambda pair: self._usefulness(*pair)
            )
            gone = set[int]()
            for anchor, _ in order:
                if self._bytes <= nbytes:
                    break
                gone.add(id(anchor))
                self._bytes -= anchor.example.nbytes
            self._anchors = [anchor for anchor in self._anchors if id(anchor) not in gone]

    def examples(self, slot: Slot) -> list[Example]:
        """A slot's examples, oldest first."""
        with self._lock:
            return [anchor.example for anchor in self._anchors if anchor.slot == slot]

    def agent_examples(self, agent: str) -> list[Example]:
        """An agent's examples over all its slots, oldest first."""
        with self._lock:
            return [anchor.example for anchor in self._anchors if anchor.slot.agent == agent]

    def nearest(self, embedding: Tensor, slot: Slot | None = None) -> tuple[float, Example] | None:
        """Cosine similarity to the nearest anchor, and its example; `None` if there is none.

        Args:
            embedding: `[dim]` of length 1.
            slot: only among its anchors.
        """
        with self._lock:
            among = [anchor for anchor in self._anchors if slot is None or anchor.slot == slot]
            found = _similarity(embedding, among)
            if found is None:
                return None
            similarity, anchor = found
            self._clock += 1
            anchor.hits, anchor.used = anchor.hits + 1, self._clock
            return similarity, anchor.example

    def novelty(self, slot: Slot, embedding: Tensor) -> float:
        """1 minus the largest cosine similarity to the slot's anchors, else to its agent's; 1 if there are none."""
        with self._lock:
            found = _similarity(embedding, [anchor for anchor in self._anchors if anchor.slot == slot])
            if found is None:
                among = [anchor for anchor in self._anchors if anchor.slot.agent == slot.agent]
                found = _similarity(embedding, among)
            return 1.0 if found is None else 1.0 - found[0]

    def forget(self, agent: str | None = None) -> None:
        """Forget an agent, or everything."""
        with self._lock:
            self._anchors = [a for a in self._anchors if agent is not None and a.slot.agent != agent]
            self._bytes = sum(anchor.example.nbytes for anchor in self._anchors)

    def snapshot(self, extra: Mapping[str, Tensor] | None = None, owner: Owner | None = None) -> Snapshot:
        """All that there is, to be written.

        Args:
            extra: more tensors to keep with the pool, such as a corrector's state. Not copied.
            owner: says more than the fingerprint of whose it is.
        """
        with self._lock:
            anchors = [(a.slot, a.example, a.hits) for a in self._anchors]  # examples never change
        return Snapshot(owner or Owner(self.fingerprint), anchors, extra or {})

    def save(self, folder: Path, extra: Mapping[str, Tensor] | None = None, owner: Owner | None = None) -> None:
        """Write everything to a folder, atomically: a crash leaves the old state or the new.

        Args:
            folder: made if missing.
            extra: as in `snapshot`.
            owner: as in `snapshot`.

        Raises:
            SavedMemoryError: it could not be written; what was saved before is still whole.
        """
        self.snapshot(extra, owner).write(folder)

    @classmethod
    def load(cls, folder: Path, fingerprint: str, budget: int = GiB) -> tuple[AnchorPool, dict[str, Tensor]]:
        """A saved pool, and the extra tensors saved with it.

        Raises:
            SavedMemoryError: nothing is there, it is damaged, of another version, or of another model; says which.
        """
        pool = cls(budget, fingerprint)
        anchors, extra = read_anchors(folder, fingerprint)
        for slot, example, hits in anchors:
            if pool.add(slot, example):
                pool._anchors[-1].hits = hits
        return pool, extra

    def _shrink(self) -> None:
        if self._bytes <= self.budget:
            return
        newest, before = self._anchors[-1], len(self._anchors)
        scores = {
            id(a): self._usefulness(a, distinct)
            for a, distinct in zip(self._anchors, self._distinctness(), strict=True)
        }
        for anchor in sorted(self._anchors[:-1], key=lambda a: scores[id(a)]):
            if self._bytes <= self.budget:
                break
            self._anchors.remove(anchor)
            self._bytes -= anchor.example.nbytes
        logger.debug("anchors over their budget: %d of %d forgotten", before - len(self._anchors), before)
        if self._anchors[-1] is not newest:
            raise RuntimeError("the newest anchor was evicted")  # a bug, never input

    def _usefulness(self, anchor: _Anchor, distinctness: float) -> float:
        recency: float = 0.5 ** ((self._clock - anchor.used) / _HALF_LIFE)
        return (1 + anchor.hits) * (0.05 + distinctness) * recency * anchor.example.weight

    def _distinctness(self) -> list[float]:
        """Per anchor, 1 minus the similarity to the nearest other anchor of its slot; 1 where unknown."""
        distinct = [1.0] * len(self._anchors)
        by_slot: dict[Slot, list[int]] = {}
        for index, anchor in enumerate(self._anchors):
            if anchor.example.embedding is not None:
                by_slot.setdefault(anchor.slot, []).append(index)
        for indices in by_slot.values():
            if len(indices) > 1:
                keys = torch.stack([_key(self._anchors[index]) for index in indices])
                nearest = (keys @ keys.T).fill_diagonal_(-1.0).amax(1)
                for index, value in zip(indices, nearest.tolist(), strict=True):
                    distinct[index] = 1.0 - value
        return distinct


def _key(anchor: _Anchor) -> Tensor:
    if anchor.example.embedding is None:
        raise RuntimeError("an anchor without an embedding is looked up by it")  # a bug, never input
    return anchor.example.embedding.cpu()


def _similarity(embedding: Tensor, among: list[_Anchor]) -> tuple[float, _Anchor] | None:
    keyed = [a for a in among if a.example.embedding is not None and a.example.embedding.shape == embedding.shape]
    if not keyed:
        return None
    similarities = torch.stack([_key(anchor) for anchor in keyed]) @ embedding.detach().float().cpu()
    best = int(similarities.argmax())
    return float(similarities[best]), keyed[best]
