"""Runner: executes any prefill plan on a transformers model in one forward pass. It knows no policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .cache import PlanCache, position_ids
from .layout import KVLayout, inspect
from .packing import Pack, packed_mask
from .plan import PrefillPlan, dense

_SPARE_CACHES = 2


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """Logits after the prompt's last tokens, float32 `[kept, vocabulary]`, and where the time went, in seconds."""

    logits: Tensor
    assemble_s: float
    forward_s: float


class Runner:
    """Prefill and decode on one model, one context at a time. Not thread-safe: its owner serialises.

    Args:
        model: a causal language model in eval mode.

    Raises:
        UnsupportedModelError: the model has no per-token KV of one shape.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.layout: KVLayout = inspect(model)
        self._spare: list[PlanCache] = []

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
            return PlanCache(self.layout, -(-capacity // 256) * 256)
        cache = min(fitting, key=lambda spare: spare.capacity)
        self._spare.remove(cache)
        return cache

    def close(self, cache: PlanCache) -> None:
        """Give a cache back; its memory serves the next request (fresh pages are slow to touch)."""
        self._spare = [*self._spare, cache][-_SPARE_CACHES:]

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
        started = time.perf_counter()
        cache.reserve(plan.length)
        for run in plan.placed:
            if run.block.position != run.start:
                self.layout.require_movable()
            cache.place(run.block, run.start, self.layout.rope)
        assembled = time.perf_counter()
        spans = [(run.start, run.stop) for run in plan.computed]
        if len(spans) == 1:
            start, stop = spans[0]
            targets: slice | Tensor = slice(start, stop)
            mask = None  # transformers makes it, in the form the model's attention wants
            tokens = list(ids[start:stop])
        else:
            self.layout.require_movable()
            order = [position for start, stop in spans for position in range(start, stop)]
            targets = torch.tensor(order, device=self.device)
            mask = (torch.arange(plan.length, device=self.device) <= targets[:, None])[None, None]
            tokens = [ids[position] for position in order]
        logits = self._forward(cache, tokens, targets, plan.length, mask, keep)
        return PrefillResult(logits, assembled - started, time.perf_counter() - assembled)

    @torch.no_grad()
    def prefill_apart(self, cache: PlanCache, pack: Pack) -> None:
        """Compute documents side by side in one forward pass; then the cache holds the KV of `pack`, row by row.

        Args:
            cache: with room for the row; what it held is overwritten.
            pack: see `packing.Pack`. Captured blocks are of its positions, not of their places in the row.
        """
        row = len(pack.ids)
        cache.reserve(row)
        mask = packed_mask(pack.segments.to(self.device))
        self._forward(cache, pack.ids.tolist(), slice(0, row), row, mask, 1, pack.positions.to(self.device)[None])

    @torch.no_grad()
    def decode(self, cache: PlanCache, token: int) -> Tensor:
        """Append one token; logits of the next, float32 `[vocabulary]`."""
        return self.extend(cache, [token])[0]

    @torch.no_grad()
    def extend(self, cache: PlanCache, tokens: Sequence[int], keep: int = 1) -> Tensor:
        """Append tokens in one forward pass; logits after the last `keep` of them, float32 `[keep, vocabulary]`."""
        at = cache.length
        end = at + len(tokens)
        cache.reserve(end)
        return self._forward(cache, tokens, slice(at, end), end, None, keep)

    def _forward(
        self,
        cache: PlanCache,
        tokens: Sequence[int],
        targets: slice | Tensor,
        end: int,
        mask: Tensor | None,
        keep: int,
        positions: Tensor | None = None,
    ) -> Tensor:
        cache.expect(targets, end)
        output = self.model(
            input_ids=torch.tensor([tokens], device=self.device),
            attention_mask=mask,
            position_ids=position_ids(targets, self.device) if positions is None else positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        cache.length = end
        logits: Tensor = output.logits[0, -keep:].float()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return logits
