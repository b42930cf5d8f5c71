"""Idle work as values: what is left to do when nobody waits, and what it would cost.

A value can be sized, ordered, named in a log, dropped with its namespace and sent to another process. What does
it is in `Measurements` and in the engine's warm-up; when it is done, in the engine's idle scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from ..backend import Scores
from ..plan import Placed
from .guard import Option
from .namespace import Lesson
from .segments import Segment
from .served import ServedRequest

IdleKind = Literal["correct", "audit", "trial", "learn", "warm"]
"""Of idle work. `correct`: spans for the slots that usually read their author. `audit`: what was served with
corrected KV is prefilled exactly. `trial`: what was served exactly is run on the rungs of the ladder. `learn`:
exact KV teaches the maps. `warm`: texts are computed before anybody reads them."""

Chunks = Iterator[int]
"""Idle work while it is done: each step is a chunk, and gives the tokens that went through the model."""


class IdleWork(Protocol):
    """One piece of idle work."""

    @property
    def kind(self) -> IdleKind:
        """What is done."""
        ...

    @property
    def namespace(self) -> str:
        """Whose it is: the work goes when its namespace does."""
        ...

    @property
    def agent(self) -> str:
        """For whom; empty if for nobody in particular."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that would go through the model, at most."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps alive while it waits."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Correct:
    """Spans, by id, to be corrected for the slots that usually read their author."""

    namespace: str
    agent: str
    spans: tuple[int, ...]
    kind: Literal["correct"] = "correct"
    tokens: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """A request that was served with corrected KV, to be prefilled exactly.

    Args:
        request: as it was served.
        scores: that it was served from.
        whole: segments of its prompt.
        subjects: those of them that are learned from.
        forced: it is done whatever the ledger says.
    """

    request: ServedRequest
    scores: Scores
    whole: tuple[Segment, ...]
    subjects: tuple[Segment, ...]
    forced: bool = False
    kind: Literal["audit"] = "audit"

    @property
    def namespace(self) -> str:
        """Of the request."""
        return self.request.namespace

    @property
    def agent(self) -> str:
        """Of the request."""
        return self.request.agent

    @property
    def tokens(self) -> int:
        """Prompt and compared output; less, as far as an exact prefix reaches."""
        return len(self.request.ids) + len(self.scores) - 1

    @property
    def nbytes(self) -> int:
        """Of the kept distributions."""
        return self.scores.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A request whose exact distributions are there, to be run on a rung of the ladder.

    Args:
        request: as it was served.
        scores: the exact ones.
        prefix: its exact prefix.
        segments: of the rest.
        option: the rung.
    """

    request: ServedRequest
    scores: Scores
    prefix: tuple[Placed, ...]
    segments: tuple[Segment, ...]
    option: Option
    kind: Literal["trial"] = "trial"

    @property
    def namespace(self) -> str:
        """Of the request."""
        return self.request.namespace

    @property
    def agent(self) -> str:
        """Of the request."""
        return self.request.agent

    @property
    def tokens(self) -> int:
        """What the rung computes, and the compared output."""
        return self.option.computed + len(self.scores)

    @property
    def nbytes(self) -> int:
        """Bytes of the kept distributions and of the prefix, which eviction could not free."""
        return self.scores.nbytes + sum(run.block.nbytes for run in self.prefix)


@dataclass(frozen=True, slots=True, eq=False)
class Learn:
    """Exact KV of a prompt's segments, to teach the maps."""

    namespace: str
    agent: str
    lessons: tuple[Lesson, ...]
    kind: Literal["learn"] = "learn"
    tokens: int = 0

    @property
    def nbytes(self) -> int:
        """Of the captured KV."""
        return sum(block.nbytes for _, block in self.lessons)
