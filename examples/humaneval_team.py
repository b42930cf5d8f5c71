"""How many HumanEval tasks a team of three solves, with everything computed and with the messages' KV reused.

Planner, coder, reviewer, and the coder again; the tests stay hidden and judge the last code. Code is run in a process
with little time and memory, which is no sandbox. Needs `pip install "kvcomm-agents[langgraph,embeddings]"` and a model
that can write code, e.g.

    python examples/humaneval_team.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --tasks 16 --json FILE
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import START, MessagesState, StateGraph

from benchmarks.data import Row, load_rows
from coding_tasks import Task, check, extract_code
from langchain_kvcomm import ChatKVComm

ROLES = {
    "planner": "You are the planner of a small software team. You do not write code. You are given a Python function "
    "to complete. Write at most four short steps that lead to it, and name the edge cases.",
    "coder": "You are the coder of a small software team. You are given a Python function to complete, a plan, and "
    "perhaps a review of what you wrote. Answer with one Python code block that holds the whole function only.",
    "reviewer": "You are the reviewer of a small software team. You are given a Python function to complete, a plan "
    "and the code. Say in at most two sentences what is wrong with the code, or that it is right.",
}
TURNS = {
    "planner": "Write the steps now.",
    "coder": "Write the whole function now.",
    "reviewer": "Write your review now.",
}
TOKENS = {"planner": 96, "coder": 256, "reviewer": 64}


def build(llm: ChatKVComm) -> Any:
    """Planner, coder, reviewer, coder."""

    def member(agent: str) -> Callable[[MessagesState], dict[str, Any]]:
        speaker = llm.model_copy(update={"max_tokens": TOKENS[agent]})

        def node(state: MessagesState) -> dict[str, Any]:
            said = [HumanMessage(f"The {one.name or 'user'} wrote:\n{one.text}") for one in state["messages"]]
            reply = speaker.invoke([SystemMessage(ROLES[agent]), *said, HumanMessage(TURNS[agent])])
            return {"messages": [reply.model_copy(update={"name": agent})]}

        return node

    order = (("plan", "planner"), ("code", "coder"), ("review", "reviewer"), ("revise", "coder"))
    graph, before = StateGraph(MessagesState), START
    for step, agent in order:
        graph.add_node(step, member(agent)).add_edge(before, step)
        before = step
    return graph.compile()


def solved(row: Row, answer: str) -> bool:
    """Whether the hidden tests pass. What stands before the function, imports and helpers, counts as given."""
    name = row["entry_point"]
    given = row["prompt"].split(f"def {name}(")[0]
    task = Task(row["task_id"], row["prompt"], name, (row["test"], f"check({name})"))
    return check(task, f"```python\n{given}\n{extract_code(answer)}\n```").passed


def run(llm: ChatKVComm, rows: Sequence[Row]) -> dict[str, Any]:
    """The team on every task in turn, and what its requests came to."""
    engine, team, passed = llm.engine, build(llm), []
    before, started = len(engine.reports), time.perf_counter()
    for row in rows:
        asked = f"Complete this Python function.\n{row['prompt'].strip()}"
        last = team.invoke({"messages": [("user", asked)]})["messages"][-1]
        passed.append(solved(row, last.text))
        print(f"{llm.reuse}: {sum(passed)} of {len(passed)} solved ({row['task_id']})", flush=True)
        engine.settle()
    reports = engine.reports[before:]
    prompt = sum(report.prompt_tokens for report in reports)
    shares = {
        kind: sum(getattr(report, f"{kind}_tokens") for report in reports) / prompt
        for kind in ("computed", "placed_exact", "placed_corrected")
    }
    ttft = sum(report.ttft_s for report in reports)
    return {
        "tasks": len(passed),
        "solved": sum(passed),
        "passed": passed,
        "prompt_tokens": prompt,
        **shares,
        "ttft_s": ttft,
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--modes", default="off,auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, figures = load_rows("humaneval")[: options.tasks], {}
    for mode in options.modes.split(","):
        llm = ChatKVComm(
            model=options.model, dtype=options.dtype, temperature=0, reuse=mode, kv_namespace=f"humaneval-{mode}"
        )
        figures[mode] = run(llm, rows)
        print({name: value for name, value in figures[mode].items() if name != "passed"})
        if options.json:
            options.json.write_text(json.dumps({"model": Path(options.model).name, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
