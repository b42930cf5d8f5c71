"""StaticText: the KV of what an agent says in every prompt, averaged over its prompts.

A running mean is what the evidence has as best for text between spans; it has no slot and no map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kv.block import KVBlock
from ..kv.span_library import Span, SpanLibrary


@dataclass(frozen=True, slots=True, eq=False)
class _Mean:
    """Mean KV of the tokens of a span from `start` on, and how many examples each of them had, `[tokens]`."""

    start: int
    block: KVBlock
    counts: Tensor

    @property
    def stop(self) -> int:
        return self.start + self.block.tokens

    def slice(self, start: int, stop: int) -> KVBlock:
        return self.block.slice(start - self.start, stop - self.start)

    def updated(self, start: int, stop: int, true: KVBlock) -> _Mean:
        """With the KV of tokens `start:stop` of the span; what lies outside the mean is left out."""
        first, last = max(start, self.start), min(stop, self.stop)
        if first >= last:
            return self
        here = slice(first - self.start, last - self.start)
        new = true.slice(first - start, last - start)
        block, counts = self.block.clone(), self.counts.clone()
        counts[here] += 1
        for old, part in ((block.keys, new.keys), (block.values, new.values)):
            share = (1 / counts[here]).to(device=old.device, dtype=old.dtype)
            old[:, :, here] += (part - old[:, :, here]) * share[:, None]
        return _Mean(self.start, block, counts)


class StaticText:
    """Means of the static text of agents, by agent and span."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, int], _Mean] = {}

    def block(self, agent: str, span: int, start: int, stop: int) -> KVBlock | None:
        """The mean KV of tokens `start:stop` of a span, un-rotated; `None` if not all of it was learned."""
        mean = self._means.get((agent, span))
        if mean is None or not (mean.start <= start and stop <= mean.stop):
            return None
        return mean.slice(start, stop)

    def learn(self, agent: str, span: Span, start: int, true: KVBlock) -> None:
        """Take in the exact KV of a span from token `start` on, as it stood in a prompt of an agent."""
        stop = start + true.tokens
        mean = self._means.get((agent, span.id))
        if mean is None:
            # The donor of the agent's own text is the first example; another agent's donor is none.
            own = span.producer == agent
            first = span.base.slice(start, stop) if own else true
            mean = _Mean(start, first, torch.ones(true.tokens) if own else torch.zeros(true.tokens))
        self._means[agent, span.id] = mean.updated(start, stop, true)

    def prune(self, spans: SpanLibrary) -> None:
        """Drop the means of spans that are no longer known."""
        for key in [key for key in self._means if key[1] not in spans]:
            del self._means[key]

    def clear(self) -> None:
        """Drop all means."""
        self._means.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all means."""
        return sum(mean.block.nbytes for mean in self._means.values())
