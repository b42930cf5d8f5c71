"""Auditor: which requests are measured, within what reuse has saved.

Hidden work may cost a share of what reuse has saved its namespace, and one prompt of credit at the beginning. Within
that, what is measured is what tells most: readers of whom nothing is known, where most is placed from fewest spans.
"""

from __future__ import annotations

import random

from ..config import ReuseConfig
from .decision import PrefillDecision
from .guard import Guard
from .ledger import Ledger

SCORED = 32  # produced positions whose distributions are compared, at most

_SHARE, _IDLE_SHARE = 0.05, 0.10  # of what was saved that hidden work may cost; on a machine that idles
_AHEAD = 20  # an audit may not cost more than the next so many calls of its agent could gain by it
_WATCH = 0.015  # of what was saved that may be spent on audits that can gain nothing: to see a change
_EXPLORED = 0.05  # share of reusable requests that are served exactly where no idle time is left to audit any
_ENOUGH = 8  # measured calls of an agent from which on requests that are served exactly are not tried any more
_STARVED = 24  # reused requests in a row of which none could be audited


class Auditor:
    """Chooses what is measured.

    Args:
        config: the policy.
    """

    def __init__(self, config: ReuseConfig) -> None:
        self.config = config
        self.idles = True
        """Whether the machine has been idle most of the time lately."""
        self._missed = 0
        self._random = random.Random(0)

    def room(self, ledger: Ledger) -> float:
        """Tokens that may still be spent on hidden work."""
        share = self.config.hidden_share
        if share is None:
            share = _IDLE_SHARE if self.idles else _SHARE
        return ledger.room(share)

    def measures(self, decision: PrefillDecision, ledger: Ledger, guard: Guard, agent: str) -> bool:
        """Whether to measure a request: audit one that reuses, try a rung on one that does not.

        Args:
            decision: how it is prefilled.
            ledger: of its namespace.
            guard: of its namespace.
            agent: who calls.
        """
        if not decision.learns:
            return False
        self._missed += decision.option is not None  # until an audit is done
        if decision.option is None:
            if decision.trial is None or guard.measured(agent) >= _ENOUGH or self.config.audit_share == 0:
                return False
            return decision.trial.computed + SCORED <= self.room(ledger)
        if self.config.audit_share is not None:
            return self._random.random() < self.config.audit_share
        cost = decision.plan.length - decision.plan.tainted_from + SCORED  # what is before is exact by then
        if cost > self.room(ledger):
            return False
        if not guard.measured(agent):
            return True
        gain = decision.plan.computed_tokens - decision.trial.computed if decision.trial is not None else 0
        return cost <= _AHEAD * gain or ledger.watched + cost <= _WATCH * ledger.account.saved

    def explores(self) -> bool:
        """Whether to serve a request exactly, to measure it for a trial's price: where nothing can be audited."""
        starved = self.config.audit_share is None and self._missed >= _STARVED
        return starved and self._random.random() < _EXPLORED

    def audited(self) -> None:
        """An audit was done: there is idle time."""
        self._missed = 0
