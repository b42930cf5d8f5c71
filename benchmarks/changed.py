"""`kvcomm bench changed`: prompts of which a few words differ from the prompt before.

An exact prefix cache has nothing behind the first changed token. Each prompt is asked of three engines in turn, which
generate the answer: one that computes everything, one with an exact prefix cache, and one that reuses. Time is taken
of the last two side by side, in an order that alternates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from kvcomm_agents.backend import Divergence
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.active import ActiveRequest
from kvcomm_agents.engine.core import EngineCore
from kvcomm_agents.engine.job import Event, Job
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.request import Completion, Request, SamplingParams

from . import served
from .changes import CASES, MOST, Case
from .dense import score
from .options import ChangedOptions, names
from .rows import mean
from .runs import SAME
from .session import Report, Session, Table, title


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt, from the second of its case on, as three engines answered it.

    Args:
        case: what changes.
        number: of the prompt, from 1 on.
        about: whether it was asked about what changed.
        prompt: tokens.
        cached, computed: of these, computed with an exact prefix cache, and with reuse.
        cached_ttft_s, ttft_s: seconds to the first token, likewise.
        rung, predicted: what was decided with reuse, and the mean KL per token that was expected, nats.
        kl, kl_max: true KL(dense || served) at the positions of the dense answer, nats.
        same: the answer is the dense one, token by token.
        answer, dense_answer: their texts.
    """

    case: str
    number: int
    about: bool
    prompt: int
    cached: int
    computed: int
    cached_ttft_s: float
    ttft_s: float
    rung: str
    predicted: float
    kl: float
    kl_max: float
    same: bool
    answer: str
    dense_answer: str


class Trio:
    """Three engines on one model: `off` computes everything, `exact` has a prefix cache, `reuse` is what is measured.

    Args:
        session: has the model.
        reuse: the policy of the third.
    """

    def __init__(self, session: Session, reuse: ReuseConfig) -> None:
        self.off, self.exact, self.reuse = (
            EngineCore(session.loaded, EngineConfig(embedder=served.EMBEDDER, reuse=policy))
            for policy in (replace(reuse, mode="off"), replace(reuse, mode="exact"), reuse)
        )


def measure(options: ChangedOptions, session: Session) -> Report:
    """Every case with both of its questions, each from a cold start.

    Raises:
        ConfigError: there is no such case, or not so many prompts of it.
    """
    wanted = names(options.cases, tuple(CASES), "case")
    if not 2 <= options.prompts <= MOST:
        raise ConfigError(f"{options.prompts} prompts were asked for; choose from 2 to {MOST}")
    reuse = replace(served.POLICY, mode=options.mode)  # type: ignore[arg-type]  # checked there
    setting = {"mode": reuse.mode, "busy": options.busy, "prompts": options.prompts, "max_tokens": options.max_tokens}
    report: Report = {**session.described, **setting, "cases": {}}
    engines = Trio(session, reuse)
    for done, name in enumerate(wanted, 1):
        rows = [row for about in (False, True) for row in ask_case(engines, CASES[name], options, about=about)]
        report["cases"][name] = _figures(rows)
        session.keep(report)
        session.tell("cases", done, len(wanted))
    return report


def ask_case(engines: Trio, case: Case, options: ChangedOptions, *, about: bool) -> Iterator[Asked]:
    """All prompts of a case with one of its questions, from a cold start; the first of them is not told of."""
    params, namespace = SamplingParams(max_tokens=options.max_tokens), f"{case.name} {about}"
    for number in range(options.prompts):
        prompt = case.prompt(number)
        messages = case.messages(number, case.about if about else case.other)
        request = Request(messages, params, agent=prompt.agent, namespace=namespace)
        _, dense = ask(engines.off, request)
        order = (engines.exact, engines.reuse) if number % 2 else (engines.reuse, engines.exact)
        answers = {id(engine): ask(engine, request) for engine in order}
        _, cached = answers[id(engines.exact)]
        active, reused = answers[id(engines.reuse)]
        far = _apart(engines, active, dense.token_ids)
        if not options.busy:
            engines.reuse.idle.finish()
        if number:
            yield Asked(
                case.name,
                number,
                about,
                reused.report.prompt_tokens,
                cached.report.computed_tokens,
                reused.report.computed_tokens,
                cached.report.ttft_s,
                reused.report.ttft_s,
                reused.report.rung,
                reused.report.predicted_divergence,
                far.mean,
                far.largest,
                reused.token_ids == dense.token_ids,
                reused.text,
                dense.text,
            )
    for engine in (engines.off, engines.exact, engines.reuse):
        engine.forget(namespace)


def ask(core: EngineCore, request: Request) -> tuple[ActiveRequest, Completion]:
    """A request alone, from its messages to its whole answer, and what the engine knew of it while it ran.

    Raises:
        KVCommError: it cannot be served.
    """
    events: list[Event] = []
    core.begin(Job(request, events.append))
    active = core.active[-1]
    while core.active:
        core.step()
    last = events[-1]
    if isinstance(last, BaseException):
        raise last
    if not isinstance(last, Completion):
        raise RuntimeError("a request ended without an answer")  # a bug, never input
    return active, last


def _apart(engines: Trio, active: ActiveRequest, said: Sequence[int]) -> Divergence:
    """How far the plan that a prompt was served by is from dense, at the positions of the dense answer."""
    plan, fed = active.decision.plan, said[:-1]
    if plan.is_exact:
        return SAME
    dense = score(engines.off.backend, active.ids, fed)
    return dense.divergence(score(engines.reuse.backend, active.ids, fed, plan))


def _figures(rows: Sequence[Asked]) -> dict[str, Any]:
    """Of all prompts of a case but its first ones; rows at the end."""
    about = [row for row in rows if row.about]
    kl = [row.kl for row in rows]
    return {
        "prompts": len(rows),
        "prompt": median(row.prompt for row in rows),
        "cached": median(row.cached for row in rows),
        "computed": median(row.computed for row in rows),
        "computed_of_cached": sum(row.computed for row in rows) / sum(row.cached for row in rows),
        "cached_ttft_s": median(row.cached_ttft_s for row in rows),
        "ttft_s": median(row.ttft_s for row in rows),
        "faster": median(row.cached_ttft_s / row.ttft_s for row in rows),
        "kl_mean": mean(kl),
        "kl_max": max(kl),
        "predicted_mean": mean(row.predicted for row in rows),
        "same_about": mean(row.same for row in about),
        "same_other": mean(row.same for row in rows if not row.about),
        "rungs": dict(Counter(row.rung for row in rows)),
        "asked": [asdict(row) for row in rows],
    }


def tables(report: Mapping[str, Any]) -> Iterator[Table | str]:
    """A row a case; medians, from the second prompt on."""
    columns = {
        "what changes": ":key",
        "n": "prompts",
        "prompt": "prompt:.0f",
        "prefix cache": "cached:.0f",
        "computed": "computed:.0f",
        "share": "computed_of_cached:.0%",
        "prefix cache ms": "cached_ttft_s:ms",
        "TTFT ms": "ttft_s:ms",
        "times faster": "faster:.2f",
        "KL": "kl_mean:.4f",
        "max": "kl_max:.4f",
        "same answer": "same_about:.0%",
        "asked otherwise": "same_other:.0%",
    }
    text = f"from the second prompt on, reuse={report['mode']}; same answer: asked about what changed"
    yield Table(title(report, text), columns, report["cases"])
    for name, case in report["cases"].items():
        yield f"{name}: {', '.join(f'{rung} {count}' for rung, count in case['rungs'].items())}"
