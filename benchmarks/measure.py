"""Rows: how one strategy did on one request, and what many rows say together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

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
        exact: the best tokens agree at every position.
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
    exact: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def compare(
    instance: Instance, strategy: str, computed: float, logits: tuple[Tensor, Tensor] | None, **extra: object
) -> Row:
    """A row.

    Args:
        instance: the request.
        strategy: its name.
        computed: tokens.
        logits: dense and the strategy's, `[positions, vocabulary]`; `None` if nothing approximate was
            placed, so that they are the same.
        extra: what only this strategy reports.
    """
    row = Row(
        instance.question, instance.agent, strategy, len(instance.ids), instance.prefix, float(computed), extra=extra
    )
    if logits is None:
        return row
    p, q = (one.log_softmax(-1) for one in logits)
    kl = (p.exp() * (p - q)).sum(-1).clamp_min(0)
    agree = p.argmax(-1) == q.argmax(-1)
    return replace(
        row,
        kl_first=float(kl[0]),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1=float(agree.float().mean()),
        exact=bool(agree.all()),
    )


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What many requests under one strategy say together.

    Mean, median, p90 and maximum are over requests, each with its mean KL per produced token.
    `computed_fraction` is of all prompt tokens, `computed_beyond_prefix` of those behind the exact prefix.
    """
    kl = np.array([row.kl_mean for row in rows])
    prompt, computed = sum(row.prompt for row in rows), sum(row.computed for row in rows)
    behind = sum(row.prompt - row.prefix for row in rows)
    beyond = sum(min(row.computed, row.prompt - row.prefix) for row in rows)
    return {
        "n": len(rows),
        "computed_fraction": computed / prompt,
        "computed_beyond_prefix": beyond / behind,
        "kl_first": float(np.mean([row.kl_first for row in rows])),
        "kl_mean": float(kl.mean()),
        "kl_mean_95": interval(rows, lambda row: row.kl_mean),
        "kl_median": float(np.median(kl)),
        "kl_p90": float(np.quantile(kl, 0.9)),
        "kl_max": float(kl.max()),
        "kl_max_token": max(row.kl_max for row in rows),
        "top1": float(np.mean([row.top1 for row in rows])),
        "exact_match": float(np.mean([row.exact for row in rows])),
        "judge_consistency": None,
        "by_agent": {agent: float(np.mean(values)) for agent, values in _by_agent(rows).items()},
    }


def interval(rows: Sequence[Row], value: Callable[[Row], float]) -> list[float]:
    """95 % bootstrap interval of the mean over requests, whole questions resampled."""
    questions = sorted({row.question for row in rows})
    sums = np.array([sum(value(row) for row in rows if row.question == question) for question in questions])
    counts = np.array([sum(row.question == question for row in rows) for question in questions])
    drawn = np.random.default_rng(0).integers(len(questions), size=(_RESAMPLES, len(questions)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return [float(edge) for edge in np.quantile(means, (0.025, 0.975))]


def paired(rows: Sequence[Row], other: Sequence[Row]) -> dict[str, float]:
    """How often a strategy diverges less than another on the same request, and the ratio of their mean KL."""
    theirs = {(row.question, row.agent): row.kl_mean for row in other}
    pairs = [(row.kl_mean, theirs[row.question, row.agent]) for row in rows if (row.question, row.agent) in theirs]
    below = sum(a < b for a, b in pairs)
    total = sum(b for _, b in pairs)
    return {
        "wins": below / len(pairs) if pairs else 0.0,
        "kl_ratio": sum(a for a, _ in pairs) / total if total else 0.0,
    }


def _by_agent(rows: Sequence[Row]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.agent, []).append(row.kl_mean)
    return found
