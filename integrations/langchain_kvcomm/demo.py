"""`kvcomm demo`: a LangGraph team at work, and what reuse saved it, measured in the same run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.entrypoints.cli.console import require_folders, say, table, write_json
from kvcomm_agents.models.loading import DEFAULT_MODEL
from kvcomm_agents.request import Message, Request, SamplingParams

from .chat_models import ChatKVComm
from .demo_team import CallWatcher, build_team

TASKS = {
    "opening-hours": (
        "Write a Python function opening_hours(days). `days` maps the name of a day to a pair (open, close) of whole "
        "hours, or to None if the shop is closed that day. Return a list of strings like 'mon 9-17', in the order of "
        "the dict, and leave out closed days. An empty dict gives an empty list."
    ),
    "parcel-sizes": (
        "Write a Python function parcel_sizes(parcels, limit). Each parcel is a tuple of three edges in centimetres. "
        "Return the indices of the parcels whose longest edge is at most `limit`, those with the smallest volume "
        "first. Equal volumes keep their order. If no parcel fits, return an empty list."
    ),
    "bus-gaps": (
        "Write a Python function bus_gaps(times). `times` holds minutes of a day in no special order. Return the "
        "waiting times between one bus and the next as a list, and leave out gaps of zero minutes. Fewer than two "
        "times give an empty list."
    ),
    "quiz-ranks": (
        "Write a Python function quiz_ranks(scores). `scores` maps a name to points. Return a dict from the name to "
        "its rank, where the most points are rank 1, equal points share a rank, and the next rank counts all who "
        "are before it. An empty dict gives an empty dict."
    ),
    "garden-rows": (
        "Write a Python function garden_rows(plants, width). Split the list `plants` into rows of `width` plants and "
        "return a list of rows. The last row may be shorter. If `width` is less than one, raise a ValueError that "
        "says so."
    ),
}
DEMO_TASKS, PRACTICE_TASKS = tuple(TASKS)[:2], tuple(TASKS)[2:]
PRACTICE_TOKENS = 28  # enough for an answer to be placed: `ReuseConfig.min_placed`
COLORS = {"planner": "cyan", "coder": "green", "reviewer": "magenta"}


@dataclass(frozen=True, slots=True)
class Call:
    """One model call of the team, beside a dense prefill of the same prompt."""

    task: str
    agent: str
    prompt_tokens: int
    computed_tokens: int
    placed_exact_tokens: int
    placed_corrected_tokens: int
    ttft_s: float
    dense_ttft_s: float


def run_demo(model: str, json_path: Path | None, max_tokens: int) -> None:
    """Let the team practise, then run it on two tasks, say what it says, and print one row for every call.

    Args:
        model: folder, GGUF file or hub id.
        json_path: also write the figures to this file.
        max_tokens: tokens that each call may answer with.

    Raises:
        ConfigError: the folder of `json_path` does not exist.
        KVCommError: the model cannot be had.
    """
    require_folders(json_path)
    console = Console()
    name = DEFAULT_MODEL if model.lower() == "default" else model
    # A small model repeats itself when it is greedy; the seed makes two runs say the same.
    llm = ChatKVComm(model=name, max_tokens=max_tokens, temperature=0.3, top_p=0.9, repetition_penalty=1.1, seed=1)
    with console.status(f"loading {name}"):
        engine = llm.engine
        _warm_up(engine)

    calls: list[Call] = []
    team = build_team(llm)
    say(f"practising on {len(PRACTICE_TASKS)} tasks; the guard measures some of what it lets through", style="dim")
    apprentices = build_team(llm.model_copy(update={"max_tokens": PRACTICE_TOKENS}))
    for task in PRACTICE_TASKS:
        apprentices.invoke({"messages": [("user", TASKS[task])]})
        engine.settle()
    for task in DEMO_TASKS:

        def measure(prompt: tuple[Message, ...], report: dict[str, Any], task: str = task) -> None:
            calls.append(_beside_dense(engine, task, prompt, report))

        console.print(Text.assemble(("\nTask: ", "bold"), TASKS[task]))
        events = team.stream(
            {"messages": [("user", TASKS[task])]},
            config={"callbacks": [CallWatcher(measure)]},
            stream_mode=["messages", "updates"],
        )
        _show(console, events, calls)

    console.print()
    columns = ("task", "agent", "prompt", "computed", "exact", "corrected", "TTFT", "dense", "speedup")
    rows = [(call.task, call.agent, *_cells([call])) for call in calls]
    rows.append(("total", "", *_cells(calls)))
    table("What was computed, and what was placed from stored KV", columns, rows, words=2)
    say("Counts are tokens of the prompt. TTFT: time to first token, in ms. Dense: the same prompt computed whole.")
    if json_path is not None:
        write_json({"model": engine.name, "calls": [asdict(call) for call in calls]}, json_path)
        say(f"figures written to {json_path}")


def _warm_up(engine: Engine) -> None:
    """Load the weights and let the first slow passes happen before anything is timed."""
    words = Message("user", "warm up " * 100)
    for _ in range(2):
        # A namespace of its own: what is kept of this must not be found by the demo.
        engine.generate(Request((words,), SamplingParams(max_tokens=2), agent="warm-up", namespace="warm-up"))


def _beside_dense(engine: Engine, task: str, prompt: tuple[Message, ...], report: dict[str, Any]) -> Call:
    """Prefill the very same tokens with reuse off, right after the call, under the same load."""
    dense = engine.generate(
        Request(
            prompt_ids=engine.render(prompt),
            params=SamplingParams(max_tokens=1),
            agent="dense",
            namespace="dense",
            reuse="off",
        )
    )
    counts = ("prompt_tokens", "computed_tokens", "placed_exact_tokens", "placed_corrected_tokens")
    return Call(
        task=task,
        agent=report["agent"],
        ttft_s=report["ttft_s"],
        dense_ttft_s=dense.report.ttft_s,
        **{name: report[name] for name in counts},
    )


def _show(console: Console, events: Iterable[Any], calls: list[Call]) -> None:
    """Print what the agents say as it comes, and a line of figures when one has spoken."""
    speaker = None
    for kind, event in events:
        if kind == "messages":
            chunk, metadata = event
            if metadata["langgraph_node"] != speaker:
                speaker = metadata["langgraph_node"]
                console.print()
                console.rule(Text(speaker, style=f"bold {COLORS[speaker]}"), style=COLORS[speaker], align="left")
            console.out(chunk.text, end="", highlight=False)
        else:
            call, speaker = calls[-1], None
            placed = call.placed_exact_tokens + call.placed_corrected_tokens
            console.print(
                f"\n{call.prompt_tokens} prompt tokens, {placed} of them placed; first token after "
                f"{_ms(call.ttft_s)} ms, dense {_ms(call.dense_ttft_s)} ms",
                style="dim",
                highlight=False,
            )


def _cells(calls: list[Call]) -> list[str]:
    ttft, dense = sum(call.ttft_s for call in calls), sum(call.dense_ttft_s for call in calls)
    return [
        str(sum(call.prompt_tokens for call in calls)),
        str(sum(call.computed_tokens for call in calls)),
        str(sum(call.placed_exact_tokens for call in calls)),
        str(sum(call.placed_corrected_tokens for call in calls)),
        _ms(ttft),
        _ms(dense),
        f"{dense / ttft:.1f}x" if ttft > 0 else "-",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}"
