"""`kvcomm bench fidelity`: divergence from dense against tokens computed, strategy by strategy."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvcomm_agents import __file__ as _package
from kvcomm_agents.backends.transformers.forced import forced
from kvcomm_agents.config import ReuseConfig
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.cache import cache_root

from .chain import Chain, Instance, append_line, lines
from .console import Tell, quietly
from .measure import Row, compare, paired, summary
from .record import Case, Recorder, dense
from .replay import Replay
from .strategies import GUARDED, NAMES, STRATEGIES, Learned

_FIXED = ("correction/*.py", "audit.py", "planner.py", "bench/measure.py", "bench/record.py", "bench/strategies.py")
_DECIDED = (
    *("correction/*.py", "anchors.py", "audit.py", "guard.py", "library.py", "memory.py", "planner.py", "reuse.py"),
    *("segments.py", "spans.py", "bench/measure.py", "bench/replay.py"),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured.

    Args:
        questions: their texts, those of the warm-up first.
        warmup: how many of them teach.
        strategies: of `NAMES`.
        reuse: the policy of `guarded`.
    """

    questions: tuple[str, ...]
    warmup: int
    strategies: tuple[str, ...] = NAMES
    reuse: ReuseConfig = ReuseConfig()

    def __post_init__(self) -> None:
        unknown = [name for name in self.strategies if name not in NAMES]
        if unknown:
            raise ConfigError(f"there is no strategy {', '.join(unknown)}; choose of {', '.join(NAMES)}")
        if not 1 <= self.warmup < len(self.questions):
            raise ConfigError(
                f"{self.warmup} warm-up questions of {len(self.questions)}: at least one is needed to learn from,"
                " and one to evaluate"
            )


class Rows:
    """The rows of one setting on disk, so that a killed run goes on.

    Args:
        chain: whose requests.
        setting: what is measured.
        folder: for rows; `None` takes the user's cache.
    """

    def __init__(self, chain: Chain, setting: Setting, folder: Path | None = None) -> None:
        folder = folder or cache_root() / "bench"
        # Rows measured by other code are other rows.
        fixed = repr((chain.key, setting.questions, setting.warmup, _code(_FIXED)))
        decided = repr((chain.key, setting.questions, setting.reuse, _code(_DECIDED)))
        self._fixed, self._decided = (
            folder / f"fixed-{_short(fixed)}.jsonl",
            folder / f"{GUARDED}-{_short(decided)}.jsonl",
        )
        self._rows: dict[tuple[int, str, str], Row] = {}
        for file in (self._fixed, self._decided):
            for line in lines(file):
                self._keep(Row(**line))

    def _keep(self, row: Row) -> None:
        self._rows[row.question, row.agent, row.strategy] = row

    def __contains__(self, key: tuple[int, str, str]) -> bool:
        return key in self._rows

    def add(self, row: Row) -> None:
        """Keep a row."""
        self._keep(row)
        append_line(self._decided if row.strategy == GUARDED else self._fixed, row.as_dict())

    def of(self, strategy: str) -> list[Row]:
        """A strategy's rows, in order of questions."""
        return sorted((row for row in self._rows.values() if row.strategy == strategy), key=lambda row: row.question)


def measure(
    chain: Chain, setting: Setting, embedder: str | None = None, folder: Path | None = None, tell: Tell = quietly
) -> dict[str, Any]:
    """Run what is not on disk yet, and sum it all up.

    Args:
        chain: whose requests; its first agent, which reads nobody, is not evaluated.
        setting: what is measured.
        embedder: of `guarded`, as in `EngineConfig`.
        folder: for rows; `None` takes the user's cache.
        tell: hears of progress.

    Returns:
        `warmup`, `eval` and `strategies` of the report.
    """
    total = len(setting.questions)
    instances = chain.run(setting.questions, lambda done: tell("dense answers", done, total))
    rows = Rows(chain, setting, folder)
    fixed = [name for name in setting.strategies if name != GUARDED]
    if any((one.question, one.agent, name) not in rows for one in _evaluated(instances, setting) for name in fixed):
        _fixed(chain, setting, fixed, instances, rows, tell)
    if GUARDED in setting.strategies:
        _guarded(chain, setting, instances, rows, embedder, tell)
    wanted = {(one.question, one.agent) for one in _evaluated(instances, setting)}
    measured = {
        name: [row for row in rows.of(name) if (row.question, row.agent) in wanted] for name in setting.strategies
    }
    report = {name: summary(found) for name, found in measured.items()}
    published = measured.get("interpolation")
    if published:
        report["interpolation"]["shareable"] = float(np.mean([row.extra["shareable"] for row in published]))
        for name, found in measured.items():
            report[name]["against_interpolation"] = paired(found, published)
    if GUARDED in measured:
        report[GUARDED] |= decisions(measured[GUARDED], setting.reuse.max_divergence)
    return {"warmup": setting.warmup, "eval": total - setting.warmup, "strategies": report}


def _evaluated(instances: Sequence[Sequence[Instance]], setting: Setting) -> list[Instance]:
    return [instance for question in instances[setting.warmup :] for instance in question[1:]]


def _fixed(
    chain: Chain,
    setting: Setting,
    names: Sequence[str],
    instances: Sequence[Sequence[Instance]],
    rows: Rows,
    tell: Tell,
) -> None:
    recorder = Recorder(chain)
    learned = Learned(recorder)
    for index, question in enumerate(instances):
        cases = recorder.cases(question)
        for case in cases[1:]:
            if index < setting.warmup:
                learned.learn(case)
                continue
            for name in names:
                if (index, case.instance.agent, name) not in rows:
                    rows.add(run(case, name, learned))
        tell("strategies", index + 1, len(instances))


def run(case: Case, name: str, learned: Learned) -> Row:
    """One strategy on one request."""
    chosen = STRATEGIES[name](case, learned)
    instance = case.instance
    extra = {"shareable": learned.shareable(case)} if name == "interpolation" else {}
    other = forced(learned.recorder.runner, instance.ids, instance.fed[: case.positions - 1], chosen.plan)
    return compare(instance, name, chosen.plan.computed_tokens + chosen.charge, (case.logits, other), **extra)


def _guarded(
    chain: Chain,
    setting: Setting,
    instances: Sequence[Sequence[Instance]],
    rows: Rows,
    embedder: str | None,
    tell: Tell,
) -> None:
    """Replayed from the start if a row is missing: what it has learned is not kept, and it must be all there."""
    everything = [instance for question in instances for instance in question]
    if all((one.question, one.agent, GUARDED) in rows for one in everything):
        return
    replay = Replay(chain.loaded, setting.reuse, embedder)
    for index, question in enumerate(instances):
        for instance in question:
            rows.add(serve(replay, instance))
        tell(GUARDED, index + 1, len(instances))


def serve(replay: Replay, instance: Instance) -> Row:
    """One request by the product's own path."""
    served = replay.serve(instance)
    logits = None
    if served.logits is not None:
        logits = dense(replay.runner, instance)[0], served.logits
    return compare(
        instance,
        GUARDED,
        served.computed,
        logits,
        reused=logits is not None,
        rung=served.rung,
        predicted=served.predicted,
        audited=served.audited,
    )


def decisions(rows: Sequence[Row], bound: float) -> dict[str, Any]:
    """How the guard decided, what it expected of the requests that it let through, and what came of them."""
    reused = [row for row in rows if row.extra["reused"]]

    def mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return {
        "reused_share": len(reused) / len(rows),
        "rungs": dict(Counter(str(row.extra["rung"]) for row in rows)),
        "audited": sum(bool(row.extra["audited"]) for row in rows),
        "predicted_mean": mean([row.extra["predicted"] for row in reused]),
        "true_mean": mean([row.kl_mean for row in reused]),
        "within_bound": mean([row.kl_mean <= bound for row in reused]),
        "predicted_true": [[row.extra["predicted"], row.kl_mean] for row in reused],
    }


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _code(patterns: Sequence[str]) -> str:
    """A hash of the code that rows depend on."""
    root = Path(_package).parent
    files = (file for pattern in patterns for file in sorted(root.glob(pattern)))
    return _short("".join(file.read_text(encoding="utf-8") for file in files))
