"""Batch: the requests in flight share each forward pass, and one that fails does so alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from torch import Tensor

from ...log import get_logger
from .attention import Part
from .runner import Runner
from .sequence import RunningSequence

logger = get_logger(__name__)

T = TypeVar("T")

_ALONE = 4  # times as much of a prompt is computed at once while nobody waits for the next token


def shares(left: Sequence[int], budget: int) -> list[int]:
    """How many prompt tokens each request computes in the next pass: half for the first come, then the shortest first.

    Args:
        left: tokens that each still has to compute, in order of arrival; 0 for one being decoded.
        budget: tokens in all.
    """
    given = [0] * len(left)
    waiting = [index for index, tokens in enumerate(left) if tokens]
    if waiting:
        given[waiting[0]] = min(left[waiting[0]], -(-budget // 2))
    for index in sorted(waiting, key=lambda index: left[index]):
        given[index] += min(left[index] - given[index], budget - sum(given))
    return given


class WithRoom(Protocol):
    """Does something, and once more with memory freed if there was none."""

    def __call__(self, work: Callable[[], T], /) -> T:
        """What it gave."""
        ...


class Batch:
    """Takes sequences one step on: a token each, or a piece of the prompt.

    Args:
        runner: of the model.
        chunk: prompt tokens computed in a pass while others wait for their next token.
        with_room: what all that takes memory goes through.
    """

    def __init__(self, runner: Runner, chunk: int, with_room: WithRoom) -> None:
        self.runner, self.chunk, self._with_room = runner, chunk, with_room

    def step(self, sequences: Sequence[RunningSequence]) -> None:
        """One forward pass over all sequences. One that fails has its error; the others go on."""
        for sequence in sequences:
            self._outgrown(sequence)
        decoding = any(not sequence.left for sequence in sequences)
        budget = self.chunk if decoding else _ALONE * self.chunk
        ready: list[tuple[RunningSequence, Part]] = []
        given = shares([sequence.left for sequence in sequences], budget)
        for sequence, share in zip(sequences, given, strict=True):
            if sequence.error is not None or (sequence.left and not share):
                continue
            try:
                ready.append((sequence, self._with_room(partial(self._part, sequence, share))))
            except BaseException as error:  # whatever it is, it is this sequence's alone
                sequence.error = error
        started = time.perf_counter()
        results = self._forward([part for _, part in ready])
        seconds = time.perf_counter() - started
        for (sequence, part), result in zip(ready, results, strict=True):
            try:
                if isinstance(result, BaseException):
                    raise result
                sequence.take(len(part.tokens), result, seconds)
            except BaseException as error:
                sequence.error = error

    def _outgrown(self, sequence: RunningSequence) -> None:
        """A context that cannot take its next tokens as it is becomes a prompt once more, computed in pieces."""
        try:
            if not sequence.left and self.runner.must_restart(sequence.context(), len(sequence.unseen)):
                self._with_room(partial(self.runner.assemble, sequence.context(), sequence.restart()))
        except BaseException as error:
            sequence.error = error

    def _part(self, sequence: RunningSequence, share: int) -> Part:
        cache = sequence.context()
        if sequence.left:
            piece = sequence.plan.computed_piece(sequence.computed, share)
            return self.runner.part(cache, sequence.known, piece, keep=int(share == sequence.left))
        new = sequence.unseen
        return self.runner.append(cache, new, len(new) if sequence.wants_rows else 1)

    def _forward(self, parts: list[Part]) -> list[Tensor | BaseException]:
        if not parts:
            return []
        try:
            return [*self._with_room(partial(self.runner.forward, parts))]
        except BaseException as error:
            if len(parts) == 1:
                return [error]
            logger.warning("a forward pass over %d requests failed; each is tried alone: %s", len(parts), error)
        return [result for part in parts for result in self._forward([part])]
