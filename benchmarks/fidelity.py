"""`kvcomm bench fidelity`: divergence from dense against tokens computed, strategy by strategy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kvcomm_agents.backends.transformers.scores import divergence

from . import served
from .chain import Chain, Instance
from .columns import Plain
from .data import load_questions
from .kept import Kept
from .learned import Learned
from .options import FidelityOptions, names
from .record import Case, Recorder
from .rows import Row, compared, mean, paired, summary
from .runs import SAME, serve_all
from .session import Report, Session, Table, title
from .strategies import GUARDED, NAMES, STRATEGIES, logits_of
from .team import chain

KEY = ("question", "agent", "strategy")
"""What tells a row from the others."""


def measure(options: FidelityOptions, session: Session) -> Report:
    """Run what is not on disk yet, and sum it all up. The first agent, which reads nobody, is not evaluated."""
    strategies, warmup = names(options.strategies, NAMES, "strategy"), options.warmup
    questions = load_questions(options.questions, warmup + options.evaluation, options.data)
    asked = Chain(session.loaded, chain(), say=session.say)
    instances = asked.run(questions, session.tell)
    evaluated = [one for question in instances[warmup:] for one in question[1:]]
    fixed, rows = [name for name in strategies if name != GUARDED], list[Row]()
    if fixed:
        kept = Kept("fixed", (asked.key, questions, warmup), KEY, session.say)
        wanted = [(one.request, one.agent, name) for one in evaluated for name in fixed]
        rows += _complete(kept, wanted, _fixed(asked, instances, warmup, fixed, kept, session))
    if GUARDED in strategies:
        kept = Kept(GUARDED, (asked.key, questions, served.POLICY), KEY, session.say)
        wanted = [(one.request, one.agent, GUARDED) for question in instances for one in question]
        rows += _complete(kept, wanted, serve_guarded(asked, instances, session))
    counted = {(one.request, one.agent) for one in evaluated}
    measured = {
        name: [row for row in rows if row.strategy == name and (row.question, row.agent) in counted]
        for name in strategies
    }
    report = {name: summary(own) for name, own in measured.items()}
    if published := measured.get("interpolation"):
        report["interpolation"]["shareable"] = mean(row.extra["shareable"] for row in published)
        for name, own in measured.items():
            report[name]["against_interpolation"] = paired(own, published)
    if GUARDED in measured:
        report[GUARDED] |= _decisions(measured[GUARDED], served.POLICY.max_divergence)
    counts = {"data": options.questions, "warmup": warmup, "eval": options.evaluation}
    return {**session.described, **counts, "strategies": report}


def _complete(kept: Kept, wanted: Iterable[tuple[int, str, str]], missing: Iterable[Row]) -> list[Row]:
    """All rows; nothing is measured if those that are wanted are there."""
    if any(key not in kept.rows for key in wanted):
        for row in missing:
            kept.add(row.as_dict())
    return [Row(**row) for row in kept.rows.values()]


def _fixed(
    asked: Chain,
    instances: Sequence[Sequence[Instance]],
    warmup: int,
    strategies: Sequence[str],
    kept: Kept,
    session: Session,
) -> Iterator[Row]:
    """Every strategy on every request, learned from the warm-up; what is kept is left out."""
    recorder = Recorder(asked)
    learned = Learned(recorder)
    for index, question in enumerate(instances):
        for case in recorder.cases(question)[1:]:
            if index < warmup:
                learned.learn(case)
                continue
            for name in strategies:
                if (index, case.instance.agent, name) not in kept.rows:
                    yield _run(case, name, learned)
        session.tell("strategies", index + 1, len(instances))


def _run(case: Case, name: str, learned: Learned) -> Row:
    chosen = STRATEGIES[name](case, learned)
    extra = {"shareable": learned.shareable(case)} if name == "interpolation" else {}
    apart = divergence(case.logits, logits_of(case, chosen, learned))
    return compared(case.instance, name, chosen.plan.computed_tokens + chosen.charge, apart, **extra)


def serve_guarded(asked: Chain, instances: Sequence[Sequence[Instance]], session: Session) -> Iterator[Row]:
    """All requests in turn by the product's own path, each learned from as an engine would, beside dense."""
    columns = [Plain(asked.loaded, prefix=False), served.make_column(GUARDED, asked.loaded)]
    run = serve_all(columns, instances, tell=session.tell)
    by_call = {id(one): one for question in instances for one in question}
    for row in run.of(GUARDED):
        yield compared(
            by_call[id(row.call)],
            GUARDED,
            row.served.computed,
            row.apart or SAME,
            reused=row.served.corrected > 0,
            rung=row.served.rung,
            predicted=row.served.predicted,
            audited=row.served.audited,
        )


def _decisions(rows: Sequence[Row], bound: float) -> dict[str, Any]:
    """How the guard decided, what it expected of the requests that it let through, and what came of them."""
    reused = [row for row in rows if row.extra["reused"]]
    return {
        "reused_share": len(reused) / len(rows),
        "rungs": dict(Counter(str(row.extra["rung"]) for row in rows)),
        "audited": sum(bool(row.extra["audited"]) for row in rows),
        "predicted_mean": mean(row.extra["predicted"] for row in reused),
        "true_mean": mean(row.kl_mean for row in reused),
        "within_bound": mean(row.kl_mean <= bound for row in reused),
        "predicted_true": [[row.extra["predicted"], row.kl_mean] for row in reused],
    }


def tables(report: Mapping[str, Any]) -> Iterator[Table | str]:
    """A row a strategy, and how the guard decided."""
    columns = {
        "strategy": ":key",
        "n": "n",
        "computed": "computed_fraction:.1%",
        "KL@1": "kl_first:.3f",
        "KL": "kl_mean:.4f",
        "median": "kl_median:.4f",
        "p90": "kl_p90:.4f",
        "max": "kl_max:.4f",
        "top-1": "top1:.3f",
        "EM": "exact_match:.2f",
        "wins": "against_interpolation/wins:.0%",
    }
    heading = title(report, f"{report['data']}: {report['warmup']} + {report['eval']} questions")
    yield Table(heading, columns, report["strategies"])
    if guarded := report["strategies"].get(GUARDED):
        yield (
            f"guarded: {guarded['reused_share']:.0%} of calls reused, rungs {guarded['rungs']}, predicted"
            f" {guarded['predicted_mean']}, true {guarded['true_mean']}, within the bound {guarded['within_bound']}"
        )
