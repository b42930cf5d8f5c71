"""ServedRequest: a request that was answered, as far as it got: what is remembered, measured and learned from."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

from .decision import PrefillDecision

_calls = itertools.count(time.time_ns())  # other processes, whose measurements are loaded, counted from elsewhere


@dataclass(frozen=True, slots=True, eq=False)
class ServedRequest:
    """One value in place of what every step after an answer wants to know.

    Args:
        namespace: whose it is.
        agent: who called.
        ids: token ids of the prompt.
        output: of the answer.
        decision: how the prompt was prefilled.
        call: a number that no other request has.
        reached: positions, counted from 0, whose KV can be captured; fewer than the prompt's if it was given up.
    """

    namespace: str
    agent: str
    ids: tuple[int, ...]
    output: tuple[int, ...]
    decision: PrefillDecision
    reached: int
    call: int = field(default_factory=lambda: next(_calls))

    @property
    def known(self) -> tuple[int, ...]:
        """Prompt and answer as far as their KV can be captured."""
        return (*self.ids, *self.output)[: self.reached]

    @property
    def prefilled(self) -> bool:
        """Whether all of the prompt was reached."""
        return self.reached >= len(self.ids)
