"""Planner: what to compute and what to place. It knows policy and no model."""

from __future__ import annotations

from collections.abc import Sequence

from .config import ReuseConfig, ReuseMode
from .plan import Computed, Placed, PrefillPlan, Run, dense
from .store import KVStore


class Planner:
    """Makes the prefill plan of a prompt from what the store holds.

    Args:
        store: where KV is found.
        config: the policy.
    """

    def __init__(self, store: KVStore, config: ReuseConfig) -> None:
        self.store, self.config = store, config

    def plan(self, ids: Sequence[int], namespace: str, mode: ReuseMode | None = None) -> PrefillPlan:
        """A plan for a prompt.

        Args:
            ids: token ids of the prompt, at least one.
            namespace: the only one whose KV may be placed.
            mode: overrides the configured reuse mode.
        """
        mode = mode or self.config.mode
        if mode == "off":
            return dense(len(ids))
        return self._with_prefix(ids, namespace, exact=mode == "exact")

    def _with_prefix(self, ids: Sequence[int], namespace: str, *, exact: bool) -> PrefillPlan:
        hits = self.store.match(namespace, ids[:-1], exact=exact)
        if not hits or hits[-1].stop < self.config.min_prefix:
            return dense(len(ids))
        tainted = False
        runs: list[Run] = []
        for hit in hits:
            tainted = tainted or hit.tainted
            runs.append(Placed(hit.start, hit.stop, hit.block, exact=not tainted))
        return PrefillPlan((*runs, Computed(hits[-1].stop, len(ids))))
