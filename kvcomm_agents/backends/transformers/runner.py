"""Runner: executes prefill plans on a transformers model, and decodes many contexts at once. It knows no policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...errors import UnsupportedModelError
from ...kv.block import KVBlock
from ...kv.layout import KVLayout
from ...log import get_logger
from ...plan import Computed, PrefillPlan, dense
from . import attention
from .attention import Part
from .cache import PlanCache
from .cuda_graphs import CudaGraphs
from .kernels import launch as kernels
from .kernels import scatter
from .longrope import LongRope
from .packing import Pack, packed_mask
from .plain import Plain, PlainState
from .probe import inspect
from .proof import SAMPLE, objection

logger = get_logger(__name__)

_SPARE_CACHES = 2


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """Logits after the prompt's last tokens, float32 `[kept, vocabulary]`, and where the time went, in seconds."""

    logits: Tensor
    assemble_s: float
    forward_s: float


class Runner:
    """Prefill and decode on one model. Not thread-safe: its owner serialises.

    A model whose attention allows it is switched to `attention.NAME`: contexts then share a forward pass. One that
    our cache would serve otherwise than transformers does goes through transformers' own (see `plain`).

    Args:
        model: a causal language model in eval mode.
        graphs: whether small passes are recorded and played again, where CUDA is (see `replay`).
        max_context: tokens that no context exceeds; the model's own limit if left out.

    Raises:
        UnsupportedModelError: an encoder-decoder, or a model whose cache does not give what it gives without one.
    """

    def __init__(self, model: PreTrainedModel, *, graphs: bool = True, max_context: int | None = None) -> None:
        self.model = model
        self.layout: KVLayout = inspect(model, max_context)
        self.longrope = LongRope(model, self.layout.long_after) if self.layout.long_after else None
        self.ragged = self.layout.rope is not None and attention.enable(model, self.layout)
        """Whether contexts share forward passes; if not, each has its own."""
        self.replay = CudaGraphs(model, self.layout) if graphs and self.ragged else None
        self._spare: list[PlanCache] = []
        self.spare_budget: int | None = None
        """Bytes that caches may hold while they wait for their next use."""
        self.plain: Plain | None = None
        """What serves the model at level `plain`."""
        if not self.ragged:
            self.plain = self._prove()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.layout.device

    @property
    def spare_bytes(self) -> int:
        """Bytes held by caches waiting for their next use."""
        return sum(cache.nbytes for cache in self._spare)

    def open(self, capacity: int) -> PlanCache:
        """A cache with room for `capacity` tokens."""
        fitting = [cache for cache in self._spare if capacity <= cache.capacity <= 4 * max(capacity, 256)]
        if not fitting:
            cache = PlanCache(self.layout, -(-capacity // 256) * 256)
            cache.plain = PlainState() if self.plain else None
            return cache
        cache = min(fitting, key=lambda spare: spare.capacity)
        self._spare.remove(cache)
        return cache

    def close(self, cache: PlanCache) -> None:
        """Give a cache back; its memory serves the next request (fresh pages are slow to touch)."""
        cache.clear()
        if cache.plain is not None:
            return
        self._spare = [*self._spare, cache][-_SPARE_CACHES:]
        while self._spare and self.spare_budget is not None and self.spare_bytes > self.spare_budget:
            self._spare.pop(0)

    def drop_spare(self) -> None:
        """Free what waits for its next use."""
        self._spare.clear()

    @torch.no_grad()
    def prefill(
        self, cache: PlanCache, ids: Sequence[int], plan: PrefillPlan | None = None, keep: int = 1
    ) -> PrefillResult:
        """Run a plan on a cache: place what is placed, then one forward pass over what is computed.

        Computed tokens attend to every token before them, placed or computed, at their true positions.

        Args:
            cache: with room for the prompt; what it held is overwritten.
            ids: token ids of the prompt.
            plan: covers `ids`; `None` computes everything.
            keep: logits are returned for this many of the last computed tokens.

        Raises:
            UnsupportedModelError: the plan moves KV and the model's keys cannot be moved.
        """
        plan = plan or dense(len(ids))
        assembled = self.assemble(cache, plan)
        started = time.perf_counter()
        logits = self.forward([self.part(cache, ids, plan.computed, keep)])[0]
        return PrefillResult(logits, assembled, time.perf_counter() - started)

    @torch.no_grad()
    def assemble(self, cache: PlanCache, plan: PrefillPlan) -> float:
        """Write what a plan places to a cache; what it held is overwritten. Returns the seconds it took.

        Raises:
            UnsupportedModelError: the plan moves KV and the model's keys cannot be moved, or it places any and the
                model is served plainly.
        """
        started = time.perf_counter()
        cache.clear()
        cache.reserve(plan.length)
        if self.longrope is not None:
            self.longrope.begin(cache, plan.length)
        if any(self.plain or run.block.position != run.start for run in plan.placed):
            self.layout.require_movable()
        if not self._scattered(cache, plan):
            for run in plan.placed:
                cache.place(run.block, run.start, self.layout.rope)
        return time.perf_counter() - started

    def _scattered(self, cache: PlanCache, plan: PrefillPlan) -> bool:
        """Whether one launch could place everything."""
        if not kernels.available(self.device):
            return False
        return scatter.scatter(plan.placed, cache.keys, cache.values, self.layout.rope)

    def part(self, cache: PlanCache, ids: Sequence[int], runs: Sequence[Computed], keep: int = 1) -> Part:
        """What a context computes in a forward pass: the tokens of some runs of its prompt, in order.

        Raises:
            UnsupportedModelError: they are scattered and the model's keys cannot be moved.
        """
        if len(runs) == 1:
            start, stop = runs[0].start, runs[0].stop
            return Part(cache, ids[start:stop], slice(start, stop), keep)
        self.layout.require_movable()
        order = [position for run in runs for position in range(run.start, run.stop)]
        return Part(cache, [ids[at] for at in order], torch.tensor(order, device=self.device), keep)

    def append(self, cache: PlanCache, tokens: Sequence[int], keep: int = 1) -> Part:
        """What a context computes in a forward pass: tokens appended to it. Makes room for them.

        Raises:
            RuntimeError: the context `must_restart` before.
        """
        if self.must_restart(cache, len(tokens)):
            raise RuntimeError("a context was continued that must be computed anew")  # a bug, never input
        at = cache.length
        cache.reserve(at + len(tokens))
        return Part(cache, tokens, slice(at, at + len(tokens)), keep)

    def must_restart(self, cache: PlanCache, tokens: int) -> bool:
        """Whether all of a context has to be computed anew, as one prompt, if so many tokens are appended to it."""
        return self.longrope is not None and self.longrope.outgrows(cache, tokens)

    @torch.no_grad()
    def forward(self, parts: Sequence[Part]) -> list[Tensor]:
        """Compute tokens of several contexts in one forward pass; float32 logits `[keep, vocabulary]` of each part.

        Computed tokens attend to every token before them in their context, at their true positions.
        May be repeated if it fails: contexts then are as they were.

        Args:
            parts: of different contexts.
        """
        if not self.ragged:
            return [self._alone(part) for part in parts]
        logits = self.replay.play(parts) if self.replay else None
        if logits is None:
            logits = attention.forward(self.model, parts).float()
            if self.replay:
                self.replay.learn(parts, logits)
        for part in parts:
            part.cache.length = part.end
        self._synchronize()
        return list(torch.split(logits, [part.keep for part in parts]))

    @torch.no_grad()
    def prefill_apart(self, cache: PlanCache, pack: Pack) -> None:
        """Compute documents side by side in one forward pass; then the cache holds the KV of `pack`, row by row.

        Args:
            cache: with room for the row; what it held is overwritten.
            pack: see `packing.Pack`. Captured blocks are of its positions, not of their places in the row.
        """
        row = len(pack.ids)
        cache.clear()
        cache.reserve(row)
        part = Part(cache, pack.ids.tolist(), slice(0, row))
        self._alone(part, packed_mask(pack.segments.to(self.device)), pack.positions.to(self.device))

    def prefill_pack(self, row: Pack) -> list[KVBlock]:
        """The un-rotated KV of every document of a row, from one forward pass.

        Raises:
            UnsupportedModelError: the KV of this model cannot be moved.
        """
        rope, cache = self.layout.require_movable(), self.open(len(row.ids))
        try:
            self.prefill_apart(cache, row)
            captured = ((cache.capture(start, stop), int(row.positions[start])) for start, stop in row.edges)
            return [replace(block, position=position).unrotated(rope) for block, position in captured]
        finally:
            self.close(cache)

    def decode(self, cache: PlanCache, token: int) -> Tensor:
        """Append one token; logits of the next, float32 `[vocabulary]`."""
        return self.extend(cache, [token])[0]

    def extend(self, cache: PlanCache, tokens: Sequence[int], keep: int = 1) -> Tensor:
        """Append tokens in one forward pass; logits after the last `keep` of them, float32 `[keep, vocabulary]`."""
        return self.forward([self.append(cache, tokens, keep)])[0]

    def _alone(self, part: Part, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """A forward pass through the model's own attention, its mask in the form that wants."""
        cache, before = part.cache, part.cache.length
        if self.plain is not None and cache.plain is not None and isinstance(part.targets, slice):
            rows = self.plain.advance(cache.plain, part.targets.start, part.tokens, part.keep)
            cache.length = part.end
            self._synchronize()
            return rows
        if mask is None and not isinstance(part.targets, slice):
            mask = (torch.arange(part.end, device=self.device) <= part.targets[:, None])[None, None]
        cache.expect(part.targets, part.end)
        try:
            with self.longrope.factors(cache) if self.longrope else nullcontext():
                output = self.model(
                    input_ids=torch.tensor([part.tokens], device=self.device),
                    attention_mask=mask,
                    position_ids=(part.positions if positions is None else positions)[None],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=max(part.keep, 1),
                )
        except BaseException:
            cache.length = before
            raise
        cache.length = part.end
        logits: Tensor = output.logits[0, output.logits.shape[1] - part.keep :].float()
        self._synchronize()
        return logits

    def _prove(self) -> Plain | None:
        """Hold what our cache serves to what a dense pass gives; if it differs, what serves the model instead.

        Raises:
            UnsupportedModelError: transformers' own cache does not give it either.
        """
        plain, kind = Plain(self.model), self.model.config.model_type
        try:
            expected = plain.dense(SAMPLE)
        except Exception as error:
            raise UnsupportedModelError(f"transformers cannot run {kind}: {type(error).__name__}: {error}") from error
        if self.layout.level != "plain":
            reason = self._objection(expected)
            if not reason:
                if self.layout.level == "exact":
                    logger.warning("%s: exact prefix reuse only, because %s", kind, self.layout.reason)
                return None
            self.drop_spare()
            self.layout = self.layout.plain(f"its KV does not serve it when kept here ({reason})")
        logger.warning("%s: served plainly, without reuse, because %s", kind, self.layout.reason)
        self.plain = plain
        for _ in plain.ways():
            reason = self._objection(expected)
            if not reason:
                return plain
        raise UnsupportedModelError(
            f"{kind} cannot be served: with transformers' own cache it does not say what it says without ({reason})"
        )

    def _objection(self, expected: Tensor) -> str:
        cache = self.open(len(SAMPLE))
        try:
            return objection(lambda tokens: self.extend(cache, tokens), expected, self.layout.dtype)
        finally:
            self.close(cache)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
