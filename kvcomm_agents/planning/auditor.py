"""Auditor: which requests are measured."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from ..config import ReuseConfig
from .decision import PrefillDecision
from .namespace import Namespace

SCORED = 64  # produced positions whose distributions are compared, at most

_TRIED = 0.5  # share of requests that the guard declined that are tried: it may have become too careful
_ALL_AUDITED = 16  # reused requests of an agent before only a share is audited; as many as the published pool holds
_YOUNG = 100.0  # that share after 45 audits is three times the configured one
_TRIALS = 8  # exact requests of an agent that are tried on every rung before only a share is


class Auditor:
    """Chooses what is audited and tried, more of it while little of an agent was.

    Args:
        config: the policy.
    """

    def __init__(self, config: ReuseConfig) -> None:
        self.config = config
        self._random = random.Random(0)
        self._audits: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def audits(self, namespace: str, agent: str) -> bool:
        """Whether to audit a reused request: more of them while few of the agent were, and maps and guard are young."""
        audits = self._audits[namespace][agent]
        young = self.config.audit_share > 0 and audits < _ALL_AUDITED
        chance = 1.0 if young else self.config.audit_share * (1 + _YOUNG / (5 + audits))
        return self._random.random() < chance

    def audited(self, namespace: str, agent: str) -> None:
        """Count an audit."""
        self._audits[namespace][agent] += 1

    def tries_declined(self) -> bool:
        """Whether to try a request that the guard declined."""
        return self._random.random() < _TRIED

    def scored(self, decision: PrefillDecision, namespace: Namespace, agent: str) -> int:
        """Of how many produced positions the distributions of a request should be kept: some if it will be measured."""
        if decision.rung is not None or decision.audited:
            return SCORED * decision.audited
        measured = namespace.guard.records(agent) < _TRIALS or self._random.random() < self.config.audit_share
        return SCORED * measured

    def forget(self, namespace: str) -> None:
        """Forget how often a namespace's agents were audited."""
        self._audits.pop(namespace, None)
