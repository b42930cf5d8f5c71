"""Dense: what a model says when everything is computed, and how far from it a plan is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from kvcomm_agents.backend import Backend, Divergence, Generation, Handle, Scores
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.plan import PrefillPlan, dense

from .kept import Kept

Ids = Sequence[int]

_AT_ONCE = 16  # answers decoded in one batch


class DenseAnswers:
    """Greedy answers to prompts that are prefilled densely, decoded in batches and kept on disk for all code.

    Args:
        loaded: the model.
        backend: runs it.
        max_tokens: of an answer, at most.
        say: is told of answers that are there already.
    """

    def __init__(
        self, loaded: LoadedModel, backend: Backend, max_tokens: int, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._backend, self._max_tokens = backend, max_tokens
        self._kept = Kept("dense-answers", (loaded.fingerprint, max_tokens), ("prompt",), say, code=())

    def of(self, prompts: Sequence[Ids]) -> list[tuple[int, ...]]:
        """The answers, without the token that ends them, in the order of the prompts.

        Raises:
            KVCommError: the model cannot be run on one of them, for lack of memory for instance.
        """
        missing = iter({key: ids for ids in prompts if ((key := _key(ids)),) not in self._kept.rows}.items())
        while batch := list(islice(missing, _AT_ONCE)):
            for (key, _), output in zip(batch, self._decode([ids for _, ids in batch]), strict=True):
                self._kept.add({"prompt": key, "output": output})
        return [tuple(self._kept.rows[(_key(ids),)]["output"]) for ids in prompts]

    def _decode(self, prompts: Sequence[Ids]) -> list[list[int]]:
        handles: list[Handle] = []
        try:
            for ids in prompts:
                generation = Generation(tuple(ids), dense(len(ids)), self._max_tokens, sink=lambda token: True)
                handles.append(self._backend.start(generation))
            while any(handle.finished is None for handle in handles):
                self._backend.step()
                if error := next((handle.error for handle in handles if handle.error), None):
                    raise error
            return [list(handle.output) for handle in handles]
        finally:
            for handle in handles:
                self._backend.close(handle)


def score(backend: Backend, ids: Ids, output: Ids, plan: PrefillPlan | None = None) -> Scores:
    """Distributions that predict an output and the token behind it, by a plan; densely without one."""
    scoring = backend.score(ids, output, plan or dense(len(ids)))
    try:
        while scoring.advance():
            pass
        return scoring.scores
    finally:
        scoring.close()


def apart(backend: Backend, ids: Ids, output: Ids, scores: Scores, positions: int) -> Divergence:
    """How far the scores of a prompt and its output are from dense, over so many first positions.

    It is measured beside the engine: nothing is kept, charged or learned from.
    """
    return score(backend, ids, output[: positions - 1]).divergence(scores.head(positions))


def _key(ids: Ids) -> str:
    return hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).hexdigest()
