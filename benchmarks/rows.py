"""Rows: how one strategy did on one request, and what many rows say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kvcomm_agents.backend import Divergence

from .chain import Instance

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """One request under one strategy.

    Args:
        question, agent, strategy: which.
        prompt: its tokens.
        prefix: of these, the exact prefix.
        computed: tokens of the prompt that went through the model.
        kl_first, kl_mean, kl_max: KL(dense || strategy) in nats: at the first produced position, mean
            and maximum over them.
        top1: share of positions with the same best token.
        extra: what only some strategies report.
    """

    question: int
    agent: str
    strategy: str
    prompt: int
    prefix: int
    computed: float
    kl_first: float = 0.0
    kl_mean: float = 0.0
    kl_max: float = 0.0
    top1: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def compared(instance: Instance, strategy: str, computed: float, apart: Divergence, **extra: object) -> Row:
    """A row of a request that computed so many tokens and was so far from dense."""
    kl = apart.first, apart.mean, apart.largest
    return Row(
        instance.request,
        instance.agent,
        strategy,
        len(instance.ids),
        instance.prefix,
        float(computed),
        *kl,
        apart.top1,
        extra,
    )


def mean(values: Iterable[float]) -> float | None:
    """Their mean; `None` if there are none."""
    listed = list(values)
    return float(np.mean(listed)) if listed else None


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What many requests under one strategy say together.

    Mean, median, p90 and maximum are over requests, each with its mean KL per produced token.
    `computed_fraction` is of all prompt tokens, `computed_beyond_prefix` of those behind the exact prefix.
    """
    kl = [row.kl_mean for row in rows]
    behind = sum(row.prompt - row.prefix for row in rows)
    beyond = sum(min(row.computed, row.prompt - row.prefix) for row in rows)
    agents = sorted({row.agent for row in rows})
    return {
        "n": len(rows),
        "computed_fraction": sum(row.computed for row in rows) / sum(row.prompt for row in rows),
        "computed_beyond_prefix": beyond / behind,
        "kl_first": mean(row.kl_first for row in rows),
        "kl_mean": mean(kl),
        "kl_mean_95": interval(rows),
        "kl_median": float(np.median(kl)),
        "kl_p90": float(np.quantile(kl, 0.9)),
        "kl_max": max(kl),
        "kl_max_token": max(row.kl_max for row in rows),
        "top1": mean(row.top1 for row in rows),
        "exact_match": mean(row.top1 == 1.0 for row in rows),
        "judge_consistency": None,
        "by_agent": {agent: mean(row.kl_mean for row in rows if row.agent == agent) for agent in agents},
    }


def interval(rows: Sequence[Row]) -> list[float]:
    """95 % bootstrap interval of the mean KL over requests, whole questions resampled."""
    by_question: dict[int, list[float]] = {}
    for row in rows:
        by_question.setdefault(row.question, []).append(row.kl_mean)
    sums = np.array([sum(by_question[question]) for question in sorted(by_question)])
    counts = np.array([len(by_question[question]) for question in sorted(by_question)])
    drawn = np.random.default_rng(0).integers(len(sums), size=(_RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return [float(edge) for edge in np.quantile(means, (0.025, 0.975))]


def paired(rows: Sequence[Row], other: Sequence[Row]) -> dict[str, float]:
    """How often a strategy diverges less than another on the same request, and the ratio of their mean KL."""
    theirs = {(row.question, row.agent): row.kl_mean for row in other}
    pairs = [(row.kl_mean, theirs[row.question, row.agent]) for row in rows if (row.question, row.agent) in theirs]
    total = sum(b for _, b in pairs)
    return {
        "wins": sum(a < b for a, b in pairs) / len(pairs) if pairs else 0.0,
        "kl_ratio": sum(a for a, _ in pairs) / total if total else 0.0,
    }
