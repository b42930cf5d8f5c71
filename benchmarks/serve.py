"""`kvcomm bench serve`: runs of a LangGraph team side by side on one model, against one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median
from typing import Any

from .options import ServeOptions
from .session import Report, Session, Table, Tell, describe, title

LEVELS = (1, 4, 16)


@dataclass(slots=True)
class _Level:
    seconds: list[float] = field(default_factory=list)  # of each round
    reports: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # the answers of each run of each round


def measure(options: ServeOptions, session: Session) -> Report:
    """1, 4 and 16 runs at a time."""
    return measure_serve(options, LEVELS, session.tell)


def measure_serve(options: ServeOptions, levels: Sequence[int], tell: Tell) -> Report:
    """Run the demo's team, planner, coder and reviewer, on tasks that all differ, some runs at a time.

    Levels take turns, so that the machine's moods meet all of them. Each round of a level starts with
    nothing stored: within it, instructions are read once and then placed.

    Args:
        options: with the reuse mode `exact` the answers must equal those of one run at a time.
        levels: runs at the same time.
        tell: of the progress.

    Returns:
        By level: runs and output tokens a second (of the median round), median and 95th percentile of
        the seconds to the first token (waiting included), and how many answers equal those of one
        run at a time.
    """
    from langchain_kvcomm import ChatKVComm
    from langchain_kvcomm.demo import TASKS
    from langchain_kvcomm.demo_team import build_team

    states = [
        {"messages": [("user", f"Task {number + 1}. {task}")]}
        for number, task in zip(range(options.runs), cycle(TASKS.values()), strict=False)
    ]
    found = {level: _Level() for level in dict.fromkeys((1, *levels))}
    steps = len(found) * options.rounds

    def llm(namespace: str) -> Any:
        return ChatKVComm(
            model=options.model,
            dtype=options.dtype,  # type: ignore[arg-type]  # checked there
            temperature=0,
            max_tokens=options.max_tokens,
            reuse=options.reuse,  # type: ignore[arg-type]
            kv_namespace=namespace,
        )

    async def serve() -> None:
        await build_team(llm("warm-up"), reviews=1).abatch(states[:2])
        engine = llm("warm-up").engine
        for number in range(options.rounds):
            for at, (level, one) in enumerate(found.items()):
                tell("serving", number * len(found) + at, steps)
                await asyncio.to_thread(engine.settle)
                engine.forget()
                team = build_team(llm(f"{level} at a time, round {number}"), reviews=1)
                began = time.perf_counter()
                ended = await team.abatch(states, {"max_concurrency": level})
                one.seconds.append(time.perf_counter() - began)
                said = [message for state in ended for message in state["messages"] if message.type == "ai"]
                one.reports += [message.response_metadata["kvcomm"] for message in said]
                one.texts += [str(message.content) for message in said]

    asyncio.run(serve())
    tell("serving", steps, steps)
    return {
        **describe(llm("warm-up").engine.load()),
        "reuse": options.reuse,
        "runs": options.runs,
        "rounds": options.rounds,
        "max_tokens": options.max_tokens,
        "levels": {str(level): _figures(one, found[1], options.runs) for level, one in found.items()},
    }


def _figures(one: _Level, alone: _Level, runs: int) -> dict[str, Any]:
    seconds = median(one.seconds)
    first = sorted(report["ttft_s"] for report in one.reports)
    waited = sorted(report["queue_s"] for report in one.reports)
    tokens = sum(report["output_tokens"] for report in one.reports) / len(one.seconds)
    return {
        "seconds": [round(value, 3) for value in one.seconds],
        "runs_per_s": round(runs / seconds, 4),
        "output_tokens_per_s": round(tokens / seconds, 2),
        "throughput_over_alone": round(median(alone.seconds) / seconds, 3),
        "ttft_median_s": round(median(first), 4),
        "ttft_p95_s": round(_p95(first), 4),
        "queue_p95_s": round(_p95(waited), 4),
        "answers": len(one.texts),
        "equal": sum(a == b for a, b in zip(one.texts, alone.texts, strict=True)),
    }


def _p95(ordered: Sequence[float]) -> float:
    return ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """A row a level."""
    columns = {
        "at a time": ":key",
        "runs/s": "runs_per_s:.3f",
        "tokens/s": "output_tokens_per_s:.1f",
        "against 1": "throughput_over_alone:.2f",
        "TTFT ms": "ttft_median_s:ms",
        "p95": "ttft_p95_s:ms",
        "answers": "answers",
        "as alone": "equal",
    }
    text = f"reuse={report['reuse']}: {report['runs']} runs of three calls, {report['rounds']} rounds"
    yield Table(title(report, text), columns, report["levels"])
