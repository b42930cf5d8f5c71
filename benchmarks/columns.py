"""Columns: the ways of serving a call that are timed side by side, each with a store of its own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcomm_agents.backends.transformers.cache import PlanCache
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.config import MiB, ReuseConfig
from kvcomm_agents.errors import KVCommError
from kvcomm_agents.kv.prefix_cache import PrefixCache
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.planning.ladder import prefix_plan, prefix_runs

from .calls import Call

STORE_BYTES = 512 * MiB
"""Budget of each of the two tiers of a column's prefix store."""
NAMESPACE = "bench"


class LostColumnError(KVCommError):
    """A column that was there cannot go on; the others can."""


@dataclass(frozen=True, slots=True)
class First:
    """The first token of a call: seconds from the prompt's ids to it, and what was computed.

    Args:
        ttft_s: all of it.
        match_s: finding stored KV and spans, and deciding.
        correct_s: corrections that were not ready.
        assemble_s: writing KV into the cache.
        forward_s: the forward pass.
        computed, exact, corrected: prompt tokens computed, placed exactly and placed with a correction.
        rung: its name.
        token: the first token.
        cpu_s: processor seconds of this process meanwhile: far below `ttft_s` times the threads, others were running.
    """

    ttft_s: float
    match_s: float = 0.0
    correct_s: float = 0.0
    assemble_s: float = 0.0
    forward_s: float = 0.0
    computed: int = 0
    exact: int = 0
    corrected: int = 0
    rung: str = "dense"
    token: int = -1
    cpu_s: float = 0.0

    @property
    def other_s(self) -> float:
        """Opening the cache, choosing the token, and the rest."""
        return max(0.0, self.ttft_s - self.match_s - self.correct_s - self.assemble_s - self.forward_s)


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """What came after the first token.

    Args:
        logits: `[positions, vocabulary]` that predicted the answer's first tokens, if asked for.
        donors_s, prepare_s, audit_s, learn_s: hidden work: copying KV into the stores; embeddings
            and corrections for those who will read the answer; forward passes of audits and trials;
            anchors, maps and the guard.
        passes: how many forward passes those were.
    """

    logits: Tensor | None = None
    donors_s: float = 0.0
    prepare_s: float = 0.0
    audit_s: float = 0.0
    learn_s: float = 0.0
    passes: int = 0

    @property
    def hidden_s(self) -> float:
        """All hidden work."""
        return self.donors_s + self.prepare_s + self.audit_s + self.learn_s


class Column(ABC):
    """One way of serving calls. `first` is timed; `rest` is told the answer and does what is not waited for."""

    name: str
    learns = False
    stateless = False

    @abstractmethod
    def first(self, call: Call) -> First:
        """The first token."""

    @abstractmethod
    def rest(self, call: Call, positions: int) -> Rest:
        """The answer, teacher-forced, with logits of its first `positions` tokens (0: none); right after `first`."""

    @property
    def held_bytes(self) -> int:
        """Bytes of KV and of what was learned that the column holds now, the model's weights apart."""
        return 0

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Free what it holds."""


class Generate(Column):
    """`model.generate` of transformers, as users call it."""

    name = "generate"
    stateless = True

    def __init__(self, loaded: LoadedModel) -> None:
        self.model = loaded.model

    @torch.no_grad()
    def first(self, call: Call) -> First:
        """The first token."""
        started = time.perf_counter()
        ids = torch.tensor([call.ids], device=self.model.device)
        found = self.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False
        )
        token = int(found[0, -1])
        return First(time.perf_counter() - started, computed=len(call.ids), token=token)

    def rest(self, call: Call, positions: int) -> Rest:
        """Nothing is kept."""
        return Rest()


class Dense(Column):
    """Our runner, everything computed."""

    name = "dense"
    stateless = True

    def __init__(self, loaded: LoadedModel) -> None:
        self.runner = Runner(loaded.model)
        self._cache: PlanCache | None = None
        self._logits: Tensor | None = None

    def first(self, call: Call) -> First:
        """The first token."""
        started = time.perf_counter()
        self._cache = cache = self.runner.open(len(call.ids) + len(call.output))
        result = self.runner.prefill(cache, call.ids)
        token = int(result.logits[-1].argmax())
        ttft = time.perf_counter() - started
        self._logits = result.logits
        return First(ttft, 0.0, 0.0, result.assemble_s, result.forward_s, len(call.ids), token=token)

    def rest(self, call: Call, positions: int) -> Rest:
        """The logits."""
        if self._cache is None or self._logits is None:
            raise RuntimeError("rest() before first()")
        logits = spoken(self.runner, self._cache, call.output[: max(0, positions - 1)], self._logits, positions)
        self.runner.close(self._cache)
        return Rest(logits)


class Prefix(Column):
    """An exact prefix cache and nothing else: our runner and store, as serving engines do it."""

    name = "prefix"

    def __init__(self, loaded: LoadedModel) -> None:
        self.runner = Runner(loaded.model)
        self.store = PrefixCache(self.runner.device, STORE_BYTES, STORE_BYTES)
        self._cache: PlanCache | None = None

    def first(self, call: Call) -> First:
        """The first token."""
        started = time.perf_counter()
        runs = prefix_runs(self.store.match(NAMESPACE, call.ids[:-1], exact=True), ReuseConfig().min_prefix)
        plan = prefix_plan(len(call.ids), runs)
        matched = time.perf_counter()
        self._cache = cache = self.runner.open(len(call.ids) + len(call.output))
        result = self.runner.prefill(cache, call.ids, plan)
        token = int(result.logits[-1].argmax())
        ttft = time.perf_counter() - started
        placed = plan.placed_tokens(exact=True)
        seconds = (matched - started, 0.0, result.assemble_s, result.forward_s)
        return First(ttft, *seconds, plan.computed_tokens, placed, rung="exact" if placed else "dense", token=token)

    def rest(self, call: Call, positions: int) -> Rest:
        """The context goes into the store."""
        if self._cache is None:
            raise RuntimeError("rest() before first()")
        known = call.ids
        if call.continues:
            known = (*call.ids, *call.output)
            self.runner.extend(self._cache, call.output)
        started = time.perf_counter()
        self.store.insert(NAMESPACE, known, len(known), self._cache.capture)
        seconds = time.perf_counter() - started
        self.runner.close(self._cache)
        return Rest(donors_s=seconds)

    @property
    def held_bytes(self) -> int:
        """Bytes of stored KV."""
        stats = self.store.stats()
        return stats.device_bytes + stats.host_bytes


def spoken(runner: Runner, cache: PlanCache, output: Sequence[int], prompt: Tensor, positions: int) -> Tensor | None:
    """Feed an answer to a context: logits `[positions or fewer, vocabulary]` that predicted its first tokens.

    Args:
        runner: of the model.
        cache: holds the prompt.
        output: the answer.
        prompt: logits `[1, vocabulary]` behind the prompt.
        positions: how many are wanted; 0 returns `None`.
    """
    head, tail = output[: max(0, positions - 1)], output[max(0, positions - 1) :]
    logits = [prompt[-1:]]
    if head:
        logits.append(runner.extend(cache, head, len(head)))
    if tail:
        runner.extend(cache, tail)
    return torch.cat(logits) if positions else None
