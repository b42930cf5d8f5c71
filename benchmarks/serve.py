"""`kvcomm bench serve`: runs of a LangGraph team side by side on one model, against one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median
from typing import Any

from .console import Tell, model_name, quietly

LEVELS = (1, 4, 16)


@dataclass(slots=True)
class _Level:
    seconds: list[float] = field(default_factory=list)  # of each round
    reports: list[dict[str, Any]] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)  # of each round, the answers of each run


def measure_serve(
    model: str = "default",
    dtype: str = "auto",
    reuse: str = "exact",
    runs: int = 16,
    rounds: int = 2,
    max_tokens: int = 16,
    levels: Sequence[int] = LEVELS,
    tell: Tell = quietly,
) -> dict[str, Any]:
    """Run the demo's team, planner, coder and reviewer, on `runs` tasks, at most so many at a time as each level says.

    Levels take turns, so that the machine's moods meet all of them. Each round of a level starts with
    nothing stored: within it, instructions are read once and then placed.

    Args:
        model: folder, GGUF file or hub id.
        dtype: of its weights.
        reuse: mode; with `exact` the answers must equal those of one run at a time.
        runs: of the team in a round, on tasks that all differ.
        rounds: of all levels.
        max_tokens: that each of the team's three calls answers with.
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

    states = [{"messages": [("user", f"Task {n + 1}. {task}")]} for n, task in zip(range(runs), cycle(TASKS.values()))]
    found = {level: _Level() for level in dict.fromkeys((1, *levels))}
    steps = len(found) * rounds

    def llm(namespace: str) -> Any:
        return ChatKVComm(
            model=model,
            dtype=dtype,  # type: ignore[arg-type]  # checked there
            temperature=0,
            max_tokens=max_tokens,
            reuse=reuse,  # type: ignore[arg-type]
            kv_namespace=namespace,
        )

    async def serve() -> None:
        await build_team(llm("warm-up"), reviews=1).abatch(states[:2])
        engine = llm("warm-up").engine
        for number in range(rounds):
            for at, (level, one) in enumerate(found.items()):
                tell("serving", number * len(found) + at, steps)
                await asyncio.to_thread(engine.settle)
                engine.forget()
                team = build_team(llm(f"{level} at a time, round {number}"), reviews=1)
                began = time.perf_counter()
                ended = await team.abatch(states, {"max_concurrency": level})
                one.seconds.append(time.perf_counter() - began)
                said = [[message for message in state["messages"] if message.type == "ai"] for state in ended]
                one.reports += [message.response_metadata["kvcomm"] for messages in said for message in messages]
                one.texts.append([str(message.content) for messages in said for message in messages])

    asyncio.run(serve())
    tell("serving", steps, steps)
    return {
        "model": model_name(llm("warm-up").engine.load()),
        "reuse": reuse,
        "runs": runs,
        "rounds": rounds,
        "max_tokens": max_tokens,
        "levels": {str(level): _figures(one, found[1], runs) for level, one in found.items()},
    }


def _figures(one: _Level, alone: _Level, runs: int) -> dict[str, Any]:
    seconds = median(one.seconds)
    first = sorted(report["ttft_s"] for report in one.reports)
    waited = sorted(report["queue_s"] for report in one.reports)
    tokens = sum(report["output_tokens"] for report in one.reports) / len(one.seconds)
    pairs = [
        (a, b) for texts, want in zip(one.texts, alone.texts, strict=True) for a, b in zip(texts, want, strict=True)
    ]
    return {
        "seconds": [round(value, 3) for value in one.seconds],
        "runs_per_s": round(runs / seconds, 4),
        "output_tokens_per_s": round(tokens / seconds, 2),
        "throughput_over_alone": round(median(alone.seconds) / seconds, 3),
        "ttft_median_s": round(median(first), 4),
        "ttft_p95_s": round(_p95(first), 4),
        "queue_p95_s": round(_p95(waited), 4),
        "answers": len(pairs),
        "equal": sum(a == b for a, b in pairs),
    }


def _p95(ordered: Sequence[float]) -> float:
    return ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Of the table, one a level."""
    return [
        (
            level,
            f"{one['runs_per_s']:.3f}",
            f"{one['output_tokens_per_s']:.1f}",
            f"{one['throughput_over_alone']:.2f}x",
            *(f"{1e3 * one[key]:.0f}" for key in ("ttft_median_s", "ttft_p95_s")),
            f"{one['equal']} of {one['answers']}",
        )
        for level, one in report["levels"].items()
    ]
