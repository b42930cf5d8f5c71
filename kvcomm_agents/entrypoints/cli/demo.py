"""`kvcomm demo`: a LangGraph team at work, and what reuse saved it, measured in the same run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...errors import ConfigError, KVCommError
from ...models.loading import DEFAULT_MODEL
from ...request import Message, Request, SamplingParams
from ...tasks import TASKS

if TYPE_CHECKING:
    from ...engine.engine import Engine

DEMO_TASKS, PRACTICE_TASKS = TASKS[:2], TASKS[2:5]
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
        KVCommError: LangGraph is not installed, or the model cannot be had.
    """
    try:
        from langchain_kvcomm import ChatKVComm
        from langchain_kvcomm.demo_team import CallWatcher, build_team
    except ImportError as error:
        raise KVCommError(f'the demo needs LangGraph: pip install "kvcomm-agents[langgraph]" ({error})') from error

    if json_path is not None and not json_path.parent.is_dir():
        raise ConfigError(f"no folder {json_path.parent} to write {json_path.name} to")
    console = Console()
    name = DEFAULT_MODEL if model.lower() == "default" else model
    # A small model repeats itself when it is greedy; the seed makes two runs say the same.
    llm = ChatKVComm(model=name, max_tokens=max_tokens, temperature=0.3, top_p=0.9, repetition_penalty=1.1, seed=1)
    with console.status(f"loading {name}"):
        engine = llm.engine
        _warm_up(engine)

    calls: list[Call] = []
    team = build_team(llm)
    console.print(f"practising on {len(PRACTICE_TASKS)} tasks, so that every agent's slots are learned", style="dim")
    apprentices = build_team(llm.model_copy(update={"max_tokens": PRACTICE_TOKENS}))
    for task in PRACTICE_TASKS:
        apprentices.invoke({"messages": [("user", task.prompt)]})
        engine.settle()
    for task in DEMO_TASKS:

        def measure(prompt: tuple[Message, ...], report: dict[str, Any], task_name: str = task.name) -> None:
            calls.append(_beside_dense(engine, task_name, prompt, report))

        console.print(Text.assemble(("\nTask: ", "bold"), task.prompt))
        events = team.stream(
            {"messages": [("user", task.prompt)]},
            config={"callbacks": [CallWatcher(measure)]},
            stream_mode=["messages", "updates"],
        )
        _show(console, events, calls)

    console.print()
    console.print(_table(calls))
    if json_path is not None:
        json_path.write_text(
            json.dumps({"model": engine.name, "calls": [asdict(call) for call in calls]}, indent=2) + "\n",
            encoding="utf-8",
        )
        console.print(f"figures written to {json_path}", highlight=False, markup=False, soft_wrap=True)


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
    return Call(
        task=task,
        agent=report["agent"],
        prompt_tokens=report["prompt_tokens"],
        computed_tokens=report["computed_tokens"],
        placed_exact_tokens=report["placed_exact_tokens"],
        placed_corrected_tokens=report["placed_corrected_tokens"],
        ttft_s=report["ttft_s"],
        dense_ttft_s=dense.report.ttft_s,
    )


def _show(console: Console, events: Any, calls: list[Call]) -> None:
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


def _table(calls: list[Call]) -> Table:
    table = Table(title="What was computed, and what was placed from stored KV", title_justify="left")
    table.add_column("agent", no_wrap=True)
    for name in ("prompt", "computed", "exact", "corrected", "TTFT", "dense", "speedup"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, call in enumerate(calls):
        last_of_task = i + 1 == len(calls) or calls[i + 1].task != call.task
        table.add_row(call.agent, *_cells([call]), end_section=last_of_task)
    table.add_row("total", *_cells(calls), style="bold")
    table.caption = (
        "Counts are tokens of the prompt. TTFT: time to first token, in ms. Dense: the same prompt computed "
        "whole, right after the call."
    )
    table.caption_justify = "left"
    return table


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
