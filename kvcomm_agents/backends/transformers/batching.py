"""Batch: the requests in flight share each forward pass, and one that fails does so alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from torch import Tensor

from .attention import Part
from .runner import Runner
from .sequence import RunningSequence

logger = logging.getLogger(__name__)

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
    for index in sorted(waiting, key=lambda one: left[one]):
        given[index] += min(left[index] - given[index], budget - sum(given))
    return given


class WithRoom(Protocol):
    """Does something, and once more with memory freed if there was none."""

    def __call__(self, work: Callable[[], T], /) -> T:
        """What it gave."""
        ...


class Batch:
    """Takes requests one step on: a token each, or a piece of the prompt.

    Args:
        runner: of the model.
        chunk: prompt tokens computed in a pass while others wait for their next token.
        with_room: what all that takes memory goes through.
    """

    def __init__(self, runner: Runner, chunk: int, with_room: WithRoom) -> None:
        self.runner, self.chunk, self._with_room = runner, chunk, with_room

    def step(self, running: Sequence[RunningSequence]) -> list[tuple[RunningSequence, Exception]]:
        """One forward pass over all requests. Returns those that failed, and why; the others went on."""
        decoding = any(not one.left for one in running)
        budget = self.chunk if decoding else _ALONE * self.chunk
        failed: list[tuple[RunningSequence, Exception]] = []
        ready: list[tuple[RunningSequence, Part]] = []
        for one, share in zip(running, shares([one.left for one in running], budget), strict=True):
            if one.left and not share:
                continue
            try:
                ready.append((one, self._with_room(partial(self._part, one, share))))
            except Exception as error:
                failed.append((one, error))
        started = time.perf_counter()
        results = self._forward([part for _, part in ready])
        seconds = time.perf_counter() - started
        for (one, part), result in zip(ready, results, strict=True):
            try:
                if isinstance(result, Exception):
                    raise result
                _take(one, part, result, seconds)
            except Exception as error:
                failed.append((one, error))
        return failed

    def _part(self, one: RunningSequence, share: int) -> Part:
        if one.left:
            piece = one.choice.plan.computed_piece(one.computed, share)
            return self.runner.part(one.cache, one.ids, piece, keep=int(share == one.left))
        new = one.output[one.cache.length - len(one.ids) :]
        return self.runner.append(one.cache, new, len(new) if one.wants_logits else 1)

    def _forward(self, parts: list[Part]) -> list[Tensor | Exception]:
        if not parts:
            return []
        try:
            return [*self._with_room(partial(self.runner.forward, parts))]
        except Exception as error:
            if len(parts) == 1:
                return [error]
            logger.warning("a forward pass over %d requests failed; each is tried alone: %s", len(parts), error)
        return [result for part in parts for result in self._forward([part])]


def _take(one: RunningSequence, part: Part, logits: Tensor, seconds: float) -> None:
    """What a pass gave to a request."""
    first = one.left > 0
    if first:
        one.seconds["prefill_s"] += seconds
        one.computed += len(part.tokens)
        if one.left:
            return
        waited = time.perf_counter() - one.begun - one.seconds["prefill_s"]
        one.seconds["queue_s"] += max(0.0, waited)  # for passes that had no room for it
    tokens = one.draw(logits)
    if first:
        one.seconds["ttft_s"] = time.perf_counter() - one.job.submitted
    one.accept(tokens)
