"""`kvcomm bench rag`: a team that reads retrieved passages, with and without warming them up first.

Each question goes to the team under every condition in turn, so that times are taken side by side: `exact`
(an exact prefix cache, whose distributions are the dense ones), `cold` (reuse; the first reader computes
the passages), and reuse after a warm-up, with either kind of positions. What is done ahead is timed too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from kvcomm_agents.errors import ConfigError

from . import served
from .chain import Chain
from .columns import Plain
from .data import load_rows
from .options import RagOptions
from .runs import SAME, Row, Run, serve_all
from .served import Reused
from .session import Report, Session, Table, title
from .team import QUESTION, Agent, Role, Span

TEAM = (
    Role(
        "Reader",
        "You are the Reader of a small research team. You are given passages that a search has found, and a question."
        " Write down, in one or two short sentences, what the passages say that helps to answer it. Add nothing of your"
        " own.",
    ),
    Role(
        "Answerer",
        "You are the Answerer. From the passages below and the Reader's notes you answer the question. Name the passage"
        " you rely on, keep it to one sentence, and say so if the passages do not tell.",
    ),
    Role(
        "Checker",
        "You are the Checker, the last one before the user. Compare the answer with the passages and correct it where"
        " it is not supported. Your reply is what the user sees, so repeat the answer in full and leave everything else"
        " out.",
    ),
)
WARM = ("warm", "warm, running positions")
CONDITIONS = ("exact", "cold", *WARM)
MAX_NEW = 24


@dataclass(frozen=True, slots=True)
class Lookup:
    """A question and the passages found for it."""

    question: str
    passages: tuple[str, ...]

    @property
    def texts(self) -> dict[str, str]:
        """By the names of their spans."""
        return {QUESTION: self.question, **{f"passage {at}": text for at, text in enumerate(self.passages, 1)}}


def lookups(rows: Sequence[Mapping[str, Any]], passages: int, words: int) -> list[Lookup]:
    """Rows with `ctxs` and `question`: evenly spread passages (neighbours overlap), cut to `words`.

    Raises:
        ConfigError: a row has fewer passages.
    """
    found = []
    for row in rows:
        texts = [str(passage["text"]) for passage in row["ctxs"]]
        if len(texts) < passages:
            raise ConfigError(f"{passages} passages were asked for and a row has {len(texts)}; lower --passages")
        step = max(len(texts) // passages, 1)
        cut = tuple(" ".join(text.split()[:words]) for text in texts[::step][:passages])
        found.append(Lookup(str(row["question"]).strip(), cut))
    return found


def research_team(passages: int) -> tuple[Agent, ...]:
    """Agents of which each reads so many passages, the question, and what all before it wrote."""
    agents: list[Agent] = []
    for role in TEAM:
        user: list[str | Span] = []
        for at in range(1, passages + 1):
            user += ["\n\n" if user else "The search has found this.\n\n", f"Passage {at}:\n", Span(f"passage {at}")]
        user += ["\n\nThe question is: ", Span(QUESTION)]
        for before in agents:
            user += [f"\n\nThe {before.name} wrote:\n", Span(before.name)]
        agents.append(Agent(role.name, role.system, (*user, "\n\nNow write your part.")))
    return tuple(agents)


def measure(options: RagOptions, session: Session) -> Report:
    """Every question to the whole team under every condition; all say what dense said, token by token."""
    reuse = replace(served.POLICY, mode=options.mode, max_divergence=options.max_divergence)  # type: ignore[arg-type]
    count = options.warmup + options.evaluation
    found = lookups(load_rows("musique", options.data, count)[:count], options.passages, options.words)
    loaded = session.loaded
    asked = Chain(loaded, research_team(options.passages), MAX_NEW, say=session.say)
    requests = asked.run([lookup.texts for lookup in found], session.tell)
    policies = {
        "exact": replace(reuse, mode="exact"),
        "cold": reuse,
        "warm": replace(reuse, pack_positions="reset"),
        "warm, running positions": replace(reuse, pack_positions="running"),
    }
    conditions = {name: Reused(name, loaded, policies[name]) for name in CONDITIONS}
    ahead: dict[tuple[str, int], float] = {}

    def report(run: Run) -> dict[str, Any]:
        return {
            **session.described,
            "data": "musique",
            "learned_from": options.warmup,
            "measured": len({row.call.request for row in run.steady}),
            "passages": options.passages,
            "mode": reuse.mode,
            "max_divergence": reuse.max_divergence,
            "conditions": {
                name: {role.name: _summary(run, name, role.name, ahead) for role in TEAM} for name in CONDITIONS
            },
        }

    def warm(request: int, run: Run) -> None:
        if run.steady:
            session.keep(report(run))
        for name in WARM:
            started = time.perf_counter()
            conditions[name].warm(found[request].passages)
            ahead[name, request] = time.perf_counter() - started

    columns = [Plain(loaded, prefix=False), *conditions.values()]
    return report(serve_all(columns, requests, options.warmup, tell=session.tell, before=warm))


def _summary(run: Run, condition: str, agent: str, ahead: Mapping[tuple[str, int], float]) -> dict[str, Any]:
    rows = [row for row in run.of(condition) if row.call.agent == agent]
    exact = {id(row.call): row.served.ttft_s for row in run.of("exact")}
    apart, rungs = [row.apart or SAME for row in rows], [row.served.rung for row in rows]

    def waited(row: Row) -> float:
        """Of the warm-up, which is charged to the first reader."""
        return ahead.get((condition, row.call.request), 0.0) if agent == TEAM[0].name else 0.0

    return {
        "n": len(rows),
        "prompt_tokens": fmean(len(row.call.ids) for row in rows),
        "computed_fraction": sum(row.served.computed for row in rows) / sum(len(row.call.ids) for row in rows),
        "ttft_s": median(row.served.ttft_s for row in rows),
        "ttft_of_exact": median(row.served.ttft_s / exact[id(row.call)] for row in rows),
        "charged_of_exact": median((row.served.ttft_s + waited(row)) / exact[id(row.call)] for row in rows),
        "ahead_s": median(map(waited, rows)),
        "idle_s": median(row.served.hidden_s for row in rows),
        "kl_first": fmean(one.first for one in apart),
        "kl_mean": fmean(one.mean for one in apart),
        "kl_max": max(one.mean for one in apart),
        "top1": fmean(one.top1 for one in apart),
        "rungs": {rung: rungs.count(rung) for rung in sorted(set(rungs))},
    }


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """A row for each condition and agent."""
    columns = {
        "condition: agent": ":key",
        "computed": "computed_fraction:.0%",
        "TTFT s": "ttft_s:.2f",
        "/ exact": "ttft_of_exact:.2f",
        "charged": "charged_of_exact:.2f",
        "KL first": "kl_first:.4f",
        "KL mean": "kl_mean:.4f",
        "top-1": "top1:.3f",
    }
    rows = {f"{name}: {agent}": one for name, agents in report["conditions"].items() for agent, one in agents.items()}
    yield Table(title(report, f"{report['measured']} questions, reuse={report['mode']}"), columns, rows)
