"""ChunkedScoring: a prompt and a known output through the model, a chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ...kv.block import KVBlock
from ...plan import Computed, PrefillPlan
from .cache import PlanCache
from .runner import Runner
from .scores import FullScores

T = TypeVar("T")


def prolonged(plan: PrefillPlan, tokens: int) -> PrefillPlan:
    """A plan that computes `tokens` more behind its prompt."""
    last = plan.runs[-1]
    return PrefillPlan((*plan.runs[:-1], Computed(last.start, last.stop + tokens)))


class ChunkedScoring:
    """See `backend.Scoring`.

    Args:
        runner: of the model.
        ids: the prompt.
        output: what follows it.
        plan: of the prompt.
        chunk: tokens computed at once.
        with_room: what all that takes memory goes through.
    """

    def __init__(
        self,
        runner: Runner,
        ids: Sequence[int],
        output: Sequence[int],
        plan: PrefillPlan,
        chunk: int,
        with_room: Callable[[Callable[[], object]], object],
    ) -> None:
        self.runner, self.chunk, self._with_room = runner, chunk, with_room
        self._ids = [*ids, *output]
        self._plan = prolonged(plan, len(output))
        self._wanted = len(output) + 1
        self._computed = 0
        self._rows: list[Tensor] = []
        self._cache: PlanCache | None = runner.open(self._plan.length)
        try:
            with_room(partial(runner.assemble, self._cache, self._plan))
        except BaseException:
            self.close()
            raise

    @property
    def left(self) -> int:
        """Tokens still to be computed."""
        return self._plan.computed_tokens - self._computed

    def advance(self) -> int:
        """Compute the next chunk; returns its tokens, 0 if nothing is left."""
        tokens = min(self.left, self.chunk)
        if tokens == 0:
            return 0
        runs = self._plan.computed_piece(self._computed, tokens)
        # Of this chunk those rows are kept that belong to the last `_wanted` computed tokens of all.
        keep = max(0, min(tokens, self._wanted - (self.left - tokens)))
        part = self.runner.part(self._open, self._ids, runs, keep)
        logits = self._with_room(lambda: self.runner.forward([part])[0])
        self._computed += tokens
        if keep and isinstance(logits, Tensor):
            self._rows.append(logits)
        return tokens

    @property
    def scores(self) -> FullScores:
        """Distributions that predict the output and the token behind it."""
        return FullScores(torch.cat(self._rows))

    def capture(self, start: int, stop: int) -> KVBlock:
        """A copy of the KV of positions `start:stop`, keys as cached."""
        return self._open.capture(start, stop)

    def close(self) -> None:
        """Give the context's memory back."""
        cache, self._cache = self._cache, None
        if cache is not None:
            self.runner.close(cache)

    @property
    def _open(self) -> PlanCache:
        if self._cache is None:
            raise RuntimeError("this scoring was closed")  # a bug, never input
        return self._cache
