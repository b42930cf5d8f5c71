"""Served: calls as the product serves them. Only this module knows how an engine goes about a request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvcomm_agents.backends.transformers.cache import PlanCache
from kvcomm_agents.config import EngineConfig, ReuseConfig, ReuseMode
from kvcomm_agents.engine.core import EngineCore
from kvcomm_agents.engine.warmup import WarmOrder
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.planning.decision import PrefillDecision
from kvcomm_agents.planning.divergence import KEPT
from kvcomm_agents.request import Message

from .calls import Call, tokens_of
from .columns import NAMESPACE, STORE_BYTES, Column, Generate, Plain, Served, first_token, spoken

MODES: dict[str, ReuseMode] = {"exact": "exact", "guarded": "auto", "corrected": "corrected"}
"""The reuse mode of each of the product's columns."""
NAMES = ("generate", "dense", "prefix", *MODES)
POLICY = ReuseConfig()
"""Of the product's columns, but for the mode."""
EMBEDDER: str | None = None
"""As in `EngineConfig`."""


class Reused(Column):
    """The product's own path, as an engine with this config takes it, on this thread.

    Args:
        name: of the column.
        loaded: the model.
        reuse: the policy.
    """

    def __init__(self, name: str, loaded: LoadedModel, reuse: ReuseConfig) -> None:
        self.name, self.learns = name, reuse.learns
        config = EngineConfig(
            embedder=EMBEDDER, device_cache_bytes=STORE_BYTES, host_cache_bytes=STORE_BYTES, reuse=reuse
        )
        self.core = EngineCore(loaded, config)
        self._open: tuple[PlanCache, PrefillDecision, Tensor] | None = None

    @torch.no_grad()
    def first(self, call: Call) -> Served:
        """The first token."""
        runner, asked = self.core.runner, (call.ids, call.agent, NAMESPACE, None, call.cuts)
        started = time.perf_counter()
        choice = self.core.reuse.choose(*asked)
        match = time.perf_counter() - started
        cache = runner.open(len(call.ids) + len(call.output))
        result = runner.prefill(cache, call.ids, choice.plan)
        self._open = cache, choice, result.logits
        first = first_token(
            started,
            result,
            choice.plan,
            match_s=match,
            rung=choice.rung_name,
            predicted=choice.predicted,
            audited=choice.audited and not choice.plan.is_exact,
        )
        if choice.rung is None:
            return first
        again = time.perf_counter()
        self.core.reuse.choose(*asked)  # once more, with all corrections ready: the difference is what they took
        ready = min(match, time.perf_counter() - again)
        return replace(first, match_s=ready, correct_s=match - ready)

    @torch.no_grad()
    def rest(self, call: Call, first: Served, positions: int) -> Served:
        """The answer becomes a donor, and everything is done that an engine does when idle."""
        if self._open is None:
            raise RuntimeError("rest() before first()")
        (cache, choice, prompt), reuse, runner = self._open, self.core.reuse, self.core.runner
        wanted = reuse.wants_logits(choice, call.agent, NAMESPACE)
        output = call.output if self.learns or call.continues else ()
        logits = spoken(runner, cache, output, prompt, max(positions, KEPT if wanted else 0))
        times = [time.perf_counter()]
        kept = list(logits[:KEPT]) if wanted and logits is not None else ()
        reuse.remember(choice, call.ids, output, call.agent, NAMESPACE, cache, kept)
        times.append(time.perf_counter())
        runner.close(cache)
        while reuse.urgent:
            reuse.urgent.popleft()()
        times.append(time.perf_counter())
        with _passes(runner.model) as passes:
            while reuse.backlog:
                reuse.backlog.popleft()()
        times.append(time.perf_counter())
        donors, prepare, idle = (after - before for before, after in zip(times, times[1:], strict=False))
        audit = sum(passes)
        first = replace(first, donors_s=donors, prepare_s=prepare, audit_s=audit, learn_s=idle - audit)
        return replace(first, logits=logits, passes=len(passes))

    def warm(self, texts: Sequence[str]) -> None:
        """Compute the KV of texts ahead, as an engine does when it has nothing else to do."""
        first = self.core.renderer.ids((Message("user", "."),))[0]
        self.core.warmup.submit(WarmOrder(list(map(tokens_of(self.core.loaded), texts)), first, NAMESPACE))
        while len(self.core.warmup):
            self.core.warmup.step()

    def fill(self, texts: Sequence[Sequence[int]]) -> int:
        """Make texts known, as token ids; they share one donor KV, of random numbers, whose bytes are returned."""
        keys, values = self.core.runner.layout.empty(max(map(len, texts), default=0))
        block = KVBlock(keys.normal_(), values.normal_())
        for ids in texts:
            part = block.slice(0, len(ids))
            self.core.reuse.memory(NAMESPACE).library.add(ids, part, producer="filler", origin="output", exact=True)
        return sum(len(ids) for ids in texts) * self.core.runner.layout.token_bytes

    @property
    def learned_bytes(self) -> int:
        """Bytes of donors, anchors and maps."""
        return self.core.reuse.nbytes

    @property
    def held_bytes(self) -> int:
        """Bytes of stored KV, donors, anchors, maps and spare caches."""
        stats = self.core.store.stats()
        return stats.device_bytes + stats.host_bytes + self.learned_bytes + self.core.runner.spare_bytes

    def close(self) -> None:
        """Free what it holds."""
        self.core.forget()


def make_column(name: str, loaded: LoadedModel) -> Column:
    """A column of `NAMES`."""
    if name == "generate":
        return Generate(loaded)
    if name in MODES:
        return Reused(name, loaded, replace(POLICY, mode=MODES[name]))
    return Plain(loaded, prefix=name == "prefix")


@contextmanager
def _passes(model: PreTrainedModel) -> Iterator[list[float]]:
    """Seconds of each forward pass of a model within it."""
    seconds, started = list[float](), 0.0

    def before(*_: object) -> None:
        nonlocal started
        started = time.perf_counter()

    def behind(*_: object) -> None:
        if model.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(model.device)
        seconds.append(time.perf_counter() - started)

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(behind)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
