"""Seen: what an exact prefix cache would have of a prompt, and what of the rest other agents have written or read."""

from __future__ import annotations

from collections.abc import Sequence

from kvcomm_agents.kv.span_index import SpanIndex

LEAST = 24
"""Tokens in a row that others have too; fewer do not count as their text."""


class Seen:
    """Contexts in the order in which they were served, by token ids alone: whatever an engine makes of them.

    The cache is an ideal one: it keeps every prompt and answer of all agents for ever, and finds the longest common
    beginning to the token.
    """

    def __init__(self) -> None:
        self._contexts: list[tuple[int, ...]] = []
        self._by_agent: dict[str, SpanIndex] = {}

    def prefix(self, ids: Sequence[int]) -> int:
        """Tokens of a prompt that the cache has; its last one is computed in any case."""
        return max((_common(context, ids[:-1]) for context in self._contexts), default=0)

    def shared(self, agent: str, ids: Sequence[int], start: int) -> int:
        """Tokens from `start` on that stand in the contexts of other agents, in runs of `LEAST` and more."""
        held = set[int]()
        for other, index in self._by_agent.items():
            if other != agent:
                for match in index.find(ids, start):
                    held.update(range(match.start, match.stop))
        return len(held)

    def add(self, agent: str, ids: Sequence[int], output: Sequence[int]) -> None:
        """A prompt was answered."""
        context = (*ids, *output)
        index = self._by_agent.setdefault(agent, SpanIndex(window=8, min_span=LEAST))
        index.add(len(self._contexts), context)
        self._contexts.append(context)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = zip(left, right, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))
