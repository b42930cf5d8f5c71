"""Every kind of AutoGen team on one local model: what its reuse saved, round by round.

Needs: pip install "kvcomm-agents[autogen]". Each team has three agents and is asked a real question, once
for each mode of reuse. The n-th round is the n-th call of every agent; shares are of the prompt tokens of
its calls. `exact` must say word for word what `off` says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import BaseChatMessage
from autogen_agentchat.teams import (
    DiGraphBuilder,
    GraphFlow,
    MagenticOneGroupChat,
    RoundRobinGroupChat,
    SelectorGroupChat,
    Swarm,
)

from autogen_kvcomm import KVCommChatCompletionClient
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine import shared_engine
from kvcomm_agents.telemetry import RequestReport

ROLES = {
    "writer": "You are the writer of a small team. Answer the question in two plain sentences. Do not use lists.",
    "critic": "You are the critic of a small team. Say in one sentence what the last answer lacks or gets wrong.",
    "editor": "You are the editor of a small team. Give the last answer again, better, in two plain sentences.",
}
QUESTIONS = [
    "Why do the leaves of many trees turn red and yellow in autumn, and what does a tree gain by letting them fall?"
    " Say it so that a child of ten would understand it, and name one tree that keeps its leaves.",
    "Why does the sea rise and fall twice a day on most coasts, and why not at the same hour every day? Say it so that"
    " a child of ten would understand it, and name one thing that people do with the tides.",
    "Why do people see lightning before they hear the thunder, and how can one tell from that how far away a storm is?"
    " Say it so that a child of ten would understand it, and name one safe place in a storm.",
]
MANAGERS = {"SelectorGroupChatManager", "MagenticOneOrchestrator"}
SELECTOR = """\
{history}

The next speaker must be one of {participants}. Complete the sentence with one name: The next speaker is the"""

Client = Callable[..., KVCommChatCompletionClient]


def _agents(client: Client, **more: Any) -> list[AssistantAgent]:
    made = client(**more)
    return [AssistantAgent(name, made, system_message=text, description=text) for name, text in ROLES.items()]


def round_robin(client: Client) -> Any:
    """Writer, critic, editor, and once more."""
    return RoundRobinGroupChat(_agents(client), max_turns=6)


def selector(client: Client) -> Any:
    """A model chooses who speaks; where it names nobody, AutoGen goes on with who spoke last."""
    return SelectorGroupChat(
        _agents(client),
        client(max_tokens=8),
        max_turns=6,
        selector_prompt=SELECTOR,
        allow_repeated_speaker=False,
        max_selector_attempts=2,
    )


def swarm(client: Client) -> Any:
    """Each hands over to the next by a call, and a model of this size must be made to."""
    names, made = list(ROLES), client(prefer_tools=True, max_tokens=40)
    next_of = dict(zip(names, names[1:] + names[:1], strict=True))
    members = [AssistantAgent(n, made, system_message=text, handoffs=[next_of[n]]) for n, text in ROLES.items()]
    return Swarm(members, max_turns=6)


def graph_flow(client: Client) -> Any:
    """The writer's text goes to critic and editor side by side."""
    writer, critic, editor = _agents(client)
    graph = DiGraphBuilder().add_node(writer).add_node(critic).add_node(editor)
    graph.add_edge(writer, critic).add_edge(writer, editor)
    return GraphFlow(graph.get_participants(), graph=graph.build())


def magentic_one(client: Client) -> Any:
    """An orchestrator keeps a ledger, here one that a model of this size can fill without ending at once."""

    def answer(**what: Any) -> dict[str, Any]:
        properties = {"reason": {"type": "string", "maxLength": 24}, "answer": what}
        return {"type": "object", "properties": properties, "required": list(properties)}

    entries = {
        "is_request_satisfied": answer(const=False),
        "is_in_loop": answer(const=False),
        "is_progress_being_made": answer(const=True),
        "next_speaker": answer(enum=list(ROLES)),
        "instruction_or_question": answer(type="string", maxLength=60),
    }
    ledger = {"type": "object", "properties": entries, "required": list(entries)}
    orchestrator = client(max_tokens=128, schemas={"LedgerEntry": ledger})
    return MagenticOneGroupChat(_agents(client), orchestrator, max_turns=2)


TEAMS: dict[str, tuple[Callable[[Client], Any], int]] = {
    "RoundRobinGroupChat": (round_robin, 1),
    "SelectorGroupChat": (selector, 1),
    "Swarm": (swarm, 1),
    "GraphFlow": (graph_flow, 2),
    "MagenticOneGroupChat": (magentic_one, 1),
}
"""How each is built, and how many questions it is asked, one after the other."""


@dataclass(frozen=True)
class Run:
    """What a team said, and the reports of its calls in the order in which they ended."""

    transcript: list[tuple[str, str]]
    reports: list[RequestReport]
    seconds: float


async def run_team(name: str, model: str, max_tokens: int, mode: Any, questions: Sequence[str] = QUESTIONS) -> Run:
    """A fresh team, in the namespace of all its like. `mode` is one of `ReuseMode`."""
    clients: list[KVCommChatCompletionClient] = []
    config = EngineConfig(reuse=ReuseConfig(mode=mode))

    def client(**more: Any) -> KVCommChatCompletionClient:
        settings = {"temperature": 0.0, "max_tokens": max_tokens, "engine_config": config, **more}
        clients.append(KVCommChatCompletionClient(model, kv_namespace=name, **settings))
        return clients[-1]

    build, count = TEAMS[name]
    team, said, started = build(client), [], time.perf_counter()
    for question in questions[:count]:
        result = await team.run(task=question)
        said += [(one.source, one.to_model_text()) for one in result.messages if isinstance(one, BaseChatMessage)]
    seconds = time.perf_counter() - started
    shared_engine(model, config).settle()  # until all is learned that there is to be learned
    return Run(said, [report for one in clients for report in one.reports], seconds)


def shares(reports: Sequence[RequestReport]) -> list[dict[str, Any]]:
    """One row for each round: prompt tokens, and the shares of them that were placed."""
    calls: Counter[str] = Counter()
    rounds: dict[tuple[bool, int], list[RequestReport]] = {}
    for report in reports:
        calls[report.agent] += 1
        rounds.setdefault((report.agent in MANAGERS, calls[report.agent]), []).append(report)
    rows = []
    for (manager, number), members in sorted(rounds.items()):
        prompt = sum(report.prompt_tokens for report in members)
        exact = sum(report.placed_exact_tokens for report in members) / prompt
        corrected = sum(report.placed_corrected_tokens for report in members) / prompt
        who = "manager" if manager else "agents"
        calls_made = len(members)
        rows.append(
            {"who": who, "round": number, "calls": calls_made, "prompt": prompt, "exact": exact, "corrected": corrected}
        )
    return rows


async def main() -> None:
    """Run what was asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--teams", nargs="*", default=list(TEAMS), choices=list(TEAMS))
    parser.add_argument("--modes", nargs="*", default=["off", "exact"], choices=["off", "exact", "auto", "corrected"])
    parser.add_argument("--warmup", type=int, default=0, help="teams before the one that counts, asked other questions")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--json", type=Path, help="where to write the rows as well")
    parser.add_argument("--show", action="store_true", help="print what was said")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.teams:
        dense: Run | None = None
        for mode in args.modes:
            for turn in range(args.warmup):
                first = 1 + turn % (len(QUESTIONS) - 1)
                await run_team(name, args.model, args.max_tokens, mode, [*QUESTIONS[first:], *QUESTIONS[1:first]])
            run = await run_team(name, args.model, args.max_tokens, mode)
            dense = run if mode == "off" else dense
            same = None if dense is None else run.transcript == dense.transcript
            if args.show:
                print(*(f"{source}: {text}" for source, text in run.transcript), sep="\n")
            for row in shares(run.reports):
                rows.append({"team": name, "mode": mode, "same": same, **row})
                print(
                    f"{name:22}{mode:10}{row['who']:8} round {row['round']}: {row['calls']} calls,"
                    f" {row['prompt']:5} prompt tokens, {row['exact']:4.0%} placed exact,"
                    f" {row['corrected']:4.0%} corrected" + ("" if same is None else f", as off: {same}"),
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
