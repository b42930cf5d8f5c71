"""`kvcomm bench economy`: what reuse saves an app from its first call on, with all hidden work charged.

The calls of an app are served in order from a cold start, each with a given answer, so that every run and every
policy sees the same prompts. An exact prefix cache is what reuse is compared with, and how far a call is from dense is
measured beside the engine, which learns nothing of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kvcomm_agents.config import EngineConfig
from kvcomm_agents.engine.core import EngineCore
from kvcomm_agents.engine.dictated import dictate

from . import served
from .calls import Call
from .columns import NAMESPACE
from .dense import apart
from .options import EconomyOptions, names
from .rows import mean
from .runs import SAME
from .seen import Seen
from .session import Report, Session, Table, title
from .workloads import NAMES, load_calls

POSITIONS = 64
"""First positions of an answer at which distributions are compared."""
FIRST = 8
"""Requests that a run is judged by beside the whole of it."""
ALLOWED = 0.10
"""Share of what was saved that hidden work may cost, beside one prompt."""


@dataclass(frozen=True, slots=True)
class Served:
    """One call as it was served.

    Args:
        request: which conversation it belongs to.
        agent: who called.
        number: how many calls the agent has made with this one.
        prompt, output: tokens.
        prefix: of the prompt, what an exact prefix cache has.
        shared: of the rest, what other agents have written or read.
        computed: of the prompt, what went through the model.
        placed: of the prompt, what was placed approximately.
        rung, reason: what was decided, and why no less was computed.
        predicted: mean KL per token that was expected, nats.
        kl, kl_first, kl_max: true KL(dense || served) per token in nats: mean, first, largest.
        saved, hidden: tokens of the ledger behind this call and the idle work after it.
    """

    request: int
    agent: str
    number: int
    prompt: int
    output: int
    prefix: int
    shared: int
    computed: int
    placed: int
    rung: str
    reason: str
    predicted: float
    kl: float
    kl_first: float
    kl_max: float
    saved: int
    hidden: int

    @property
    def cached(self) -> int:
        """Tokens of the prompt that an exact prefix cache would have computed."""
        return self.prompt - self.prefix


def measure(options: EconomyOptions, session: Session) -> Report:
    """Every app from a cold start, with an engine of its own.

    Raises:
        ConfigError: there is no such app, or not so many requests of it.
    """
    wanted = names(options.team, NAMES, "team")
    reuse = replace(served.POLICY, mode=options.mode)  # type: ignore[arg-type]  # checked there
    setting = {"mode": reuse.mode, "busy": options.busy, "max_divergence": reuse.max_divergence, "teams": wanted}
    report: Report = {**session.described, **setting, "positions": POSITIONS, "apps": {}}
    for name in wanted:
        requests = load_calls(name, session, options.questions, options.data, options.limit)
        core = EngineCore(session.loaded, EngineConfig(embedder=served.EMBEDDER, reuse=reuse))
        rows = []
        for row in serve(core, requests, busy=options.busy):
            rows.append(row)
            session.tell(f"{name}: calls", len(rows), sum(map(len, requests)))
        report["apps"][name] = app_figures(rows)
        session.keep(report)
    return report


def serve(core: EngineCore, requests: Sequence[Sequence[Call]], *, busy: bool = False) -> Iterator[Served]:
    """All calls in order; after each, all idle work, or none on a machine that is always busy."""
    seen, numbers = Seen(), Counter[str]()
    for call in (call for calls in requests for call in calls):
        numbers[call.agent] += 1
        prefix = seen.prefix(call.ids)
        shared = seen.shared(call.agent, call.ids, prefix)
        done = dictate(core, call.ids, call.output, agent=call.agent, namespace=NAMESPACE, cuts=call.cuts)
        plan, far = done.decision.plan, SAME
        if not plan.is_exact:
            far = apart(core.backend, call.ids, call.output, done.scores, POSITIONS)
        if not busy:
            core.idle.finish()
        account = core.account(NAMESPACE)
        seen.add(call.agent, call.ids, call.output)
        yield Served(
            call.request,
            call.agent,
            numbers[call.agent],
            len(call.ids),
            len(call.output),
            prefix,
            shared,
            plan.computed_tokens,
            plan.placed_tokens(exact=False),
            done.decision.rung_name,
            done.decision.reason,
            done.decision.predicted,
            far.mean,
            far.first,
            far.largest,
            account.saved,
            account.spent_tokens,
        )


def app_figures(rows: Sequence[Served]) -> dict[str, Any]:
    """All figures of an app: of every call number, of all calls, and what the run cost; rows at the end."""
    by_number: dict[str, list[Served]] = {}
    for row in rows:
        by_number.setdefault(str(row.number) if row.number <= FIRST else "later", []).append(row)
    numbered = {number: _calls(own) for number, own in by_number.items()}
    return {
        "numbers": {**numbered, "all": _calls(rows)},
        "rungs": dict(Counter(row.rung for row in rows)),
        "cost": _cost(rows),
        "calls": [asdict(row) for row in rows],
    }


def _calls(rows: Sequence[Served]) -> dict[str, Any]:
    """How calls were served. Shares of calls are of those that hold others' text, or of none if none does."""
    reused = [row for row in rows if row.placed]
    readers = [row for row in rows if row.shared]
    kl = [row.kl for row in reused]
    return {
        "calls": len(rows),
        "readers": len(readers),
        "reused_share": mean(row.placed > 0 for row in readers),
        "prompt": sum(row.prompt for row in rows),
        "cached": sum(row.cached for row in rows),
        "computed": sum(row.computed for row in rows),
        "kl_mean": mean(kl),
        "kl_p90": float(np.quantile(kl, 0.9)) if kl else None,
        "kl_max": max(kl, default=None),
        "predicted_mean": mean(row.predicted for row in reused),
        "saved": rows[-1].saved,
        "hidden": rows[-1].hidden,
    }


def _cost(rows: Sequence[Served]) -> dict[str, Any]:
    """Prefill tokens of others over everything charged, and how hidden work stands to what it may cost."""
    last = rows[-1]
    credit = next((row.prompt for row in rows if row.placed), rows[0].prompt)
    first = [row for row in rows if row.request < rows[0].request + FIRST]
    return {
        "first": _gains(first),
        "whole": _gains(rows),
        "hidden_of_saved": last.hidden / last.saved if last.saved > 0 else None,
        "credit": credit,
        "excess": max(row.hidden - credit - ALLOWED * row.saved for row in rows),
    }


def _gains(rows: Sequence[Served]) -> dict[str, Any]:
    """Of the first calls of a run, all that came before counted: tokens, and how many times fewer they are."""
    charged = sum(row.computed for row in rows) + rows[-1].hidden
    return {
        "requests": len({row.request for row in rows}),
        "charged": charged,
        "over_prefix_cache": sum(row.cached for row in rows) / charged,
        "over_dense": sum(row.prompt for row in rows) / charged,
    }


def tables(report: Mapping[str, Any]) -> Iterator[Table | str]:
    """For each app a row a call number; then a row an app of what it cost."""
    setting = f"reuse={report['mode']}, idle work {'never' if report['busy'] else 'after every call'}"
    columns = {
        "call": ":key",
        "calls": "calls",
        "hold others' text": "readers",
        "of these reused": "reused_share:.0%",
        "prompt": "prompt",
        "prefix cache": "cached",
        "computed": "computed",
        "KL": "kl_mean:.4f",
        "p90": "kl_p90:.4f",
        "max": "kl_max:.4f",
        "predicted": "predicted_mean:.4f",
        "saved so far": "saved",
        "hidden so far": "hidden",
    }
    for name, app in report["apps"].items():
        yield Table(title(report, f"{name}, {setting}"), columns, app["numbers"])
        yield f"{name}: {', '.join(f'{rung} {count}' for rung, count in app['rungs'].items())}"
    costs = {name: app["cost"] for name, app in report["apps"].items()}
    gains = {
        "app": ":key",
        "requests": "whole/requests",
        "charged": "whole/charged",
        f"prefix cache, first {FIRST}": "first/over_prefix_cache:.2f",
        "prefix cache, all": "whole/over_prefix_cache:.2f",
        f"dense, first {FIRST}": "first/over_dense:.2f",
        "dense, all": "whole/over_dense:.2f",
        "hidden / saved": "hidden_of_saved:.2f",
        "excess": "excess:.0f",
    }
    yield Table(title(report, f"{setting}: prefill tokens of others over all that was charged"), gains, costs)
    yield f"excess: the most by which hidden tokens were more than one prompt and {ALLOWED:.0%} of what was saved"
