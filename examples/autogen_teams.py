"""Every kind of AutoGen team on one local model: what its reuse saved, question by question and round by round.

Needs: pip install "kvcomm-agents[autogen]". Each team has three agents, and all teams run at once. In mode
`auto`, the product's default, they are asked `--questions` questions, with a new conversation for each, and
what was learned of the agents stays: with the first ones the guard measures, and then it places corrected KV
as far as its bound allows. `exact` and `off` are asked the last of these questions only; `exact` must say
word for word what `off` says. The n-th round is the n-th call of every agent; shares are of the prompt
tokens of its calls.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
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
from autogen_core.models import AssistantMessage, CreateResult, LLMMessage

from autogen_kvcomm import KVCommChatCompletionClient
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.engine import shared_engine
from kvcomm_agents.observe.report import AuditReport, RequestReport

ROLES = {
    "writer": "You are the writer of a small team. Answer the question in two plain sentences. Do not use lists.",
    "critic": "You are the critic of a small team. Say in one sentence what the last answer lacks or gets wrong.",
    "editor": "You are the editor of a small team. Give the last answer again, better, in two plain sentences.",
}
QUESTIONS = [
    "Why does the sea rise and fall twice a day on most coasts, and why not at the same hour every day? My daughter"
    " asked me on the beach and I had no good answer for her.",
    "Our bread comes out of the oven flat and heavy although we follow the recipe to the letter. What happens in a"
    " dough while it rests, and what do people most often do wrong?",
    "Why do we see the lightning before we hear the thunder, and how can one tell from the time between them how far"
    " away a storm still is? Please say what to do if one is caught outside.",
    "A friend says that bees will die out within ten years and that all fruit will be gone with them. How much of"
    " that is true, and which plants need no bees at all?",
    "How did sailors find out where they were before there were satellites? I understand the compass, but not how they"
    " knew how far they had come on a cloudy day.",
    "My old bicycle squeaks when I pedal uphill and is silent downhill. Where does such a noise come from, and in which"
    " order should I look for its cause before I pay a mechanic?",
    "Why do the leaves of many trees turn red and yellow in autumn, and what does a tree gain by letting them fall?"
    " Some of the trees in our park stay green, which confuses the children.",
    "What makes a good story for a long train ride with two small boys who have never been out of the city, and how"
    " does one end it when the train arrives earlier than planned?",
]
MANAGERS = {"SelectorGroupChatManager", "MagenticOneOrchestrator"}
SELECTOR = """\
{history}

The next speaker must be one of {participants}. Say as JSON who it is."""

Client = Callable[..., KVCommChatCompletionClient]


def _agents(client: Client, **more: Any) -> list[AssistantAgent]:
    made = client(**more)
    return [AssistantAgent(name, made, system_message=text, description=text) for name, text in ROLES.items()]


def round_robin(client: Client) -> Any:
    """Writer, critic, editor, and once more."""
    return RoundRobinGroupChat(_agents(client), max_turns=6)


class Picks(KVCommChatCompletionClient):
    """Picks a name from those it may choose: a model of this size often names nobody, or several."""

    async def create(self, messages: Sequence[LLMMessage], **options: Any) -> CreateResult:
        """As it is, but the answer is JSON with one name."""
        names = [name for name in ROLES if name in str(messages[0].content).rpartition("must be one of")[2]]
        schema = {"type": "object", "properties": {"name": {"enum": names}}, "required": ["name"]}
        asked = {"response_format": {"type": "json_object", "schema": schema}}
        return await super().create(messages, **{**options, "extra_create_args": asked})


def selector(client: Client) -> Any:
    """A model chooses who speaks."""
    return SelectorGroupChat(
        _agents(client),
        client(kind=Picks, max_tokens=16),
        max_turns=6,
        selector_prompt=SELECTOR,
        allow_repeated_speaker=False,
    )


class SpeaksFirst(KVCommChatCompletionClient):
    """Speaks, and hands over in its next turn: a model of this size cannot tell when to do which."""

    async def create(self, messages: Sequence[LLMMessage], **options: Any) -> CreateResult:
        """As it is, but for the choice between speaking and calling."""
        spoke = isinstance(messages[-1], AssistantMessage) and isinstance(messages[-1].content, str)
        return await super().create(messages, **{**options, "tool_choice": "required" if spoke else "none"})


def swarm(client: Client) -> Any:
    """Each says its part and hands over to the next by a call."""
    names, made = list(ROLES), client(kind=SpeaksFirst)
    next_of = dict(zip(names, names[1:] + names[:1], strict=True))
    members = [AssistantAgent(n, made, system_message=text, handoffs=[next_of[n]]) for n, text in ROLES.items()]
    return Swarm(members, max_turns=12)


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


TEAMS: dict[str, Callable[[Client], Any]] = {
    "RoundRobinGroupChat": round_robin,
    "SelectorGroupChat": selector,
    "Swarm": swarm,
    "GraphFlow": graph_flow,
    "MagenticOneGroupChat": magentic_one,
}


@dataclass(frozen=True)
class Run:
    """What a team said to one question, the reports of its calls as they ended, and the audits after it."""

    transcript: list[tuple[str, str]]
    reports: list[RequestReport]
    audits: list[AuditReport]


class Audits:
    """Keeps what the engine measures: an observer."""

    def __init__(self) -> None:
        self.kept: list[AuditReport] = []

    def on_request(self, report: RequestReport) -> None:
        """Nothing: clients keep their own reports."""

    def on_audit(self, report: AuditReport) -> None:
        """One more."""
        self.kept.append(report)

    def close(self) -> None:
        """Nothing to close."""

    def taken(self) -> list[AuditReport]:
        """What came since it was last asked."""
        kept, self.kept = self.kept, []
        return kept


async def run_teams(
    names: Sequence[str], model: str, max_tokens: int, mode: Any, questions: Sequence[str] = QUESTIONS[-1:]
) -> AsyncIterator[dict[str, Run]]:
    """All at once, each in a namespace of its own: new teams for each question. `mode` is one of `ReuseMode`."""
    config = EngineConfig(reuse=ReuseConfig(mode=mode))
    engine, audits = shared_engine(model, config), Audits()
    engine.observe(audits)

    async def ask(name: str, question: str) -> tuple[list[tuple[str, str]], list[RequestReport]]:
        clients: list[KVCommChatCompletionClient] = []

        def client(kind: Any = KVCommChatCompletionClient, **more: Any) -> Any:
            settings = {"temperature": 0.0, "max_tokens": max_tokens, "engine_config": config, **more}
            clients.append(kind(model, kv_namespace=name, **settings))
            return clients[-1]

        result = await TEAMS[name](client).run(task=question)
        said = [(one.source, one.to_model_text()) for one in result.messages if isinstance(one, BaseChatMessage)]
        reports = [report for one in clients for report in one.reports]
        return said, sorted(reports, key=lambda report: report.started_at)

    for question in questions:
        answers = await asyncio.gather(*(ask(name, question) for name in names))
        await asyncio.to_thread(engine.settle)  # until all is learned that there is to be learned: a pause
        kept = audits.taken()
        yield {
            name: Run(said, reports, [one for one in kept if one.namespace == name])
            for name, (said, reports) in zip(names, answers, strict=True)
        }


def rounds(reports: Sequence[RequestReport]) -> list[dict[str, Any]]:
    """One row for each round: prompt tokens, and what was done to them."""
    calls: Counter[str] = Counter()
    members: dict[tuple[bool, int], list[RequestReport]] = {}
    for report in reports:
        calls[report.agent] += 1
        members.setdefault((report.agent in MANAGERS, calls[report.agent]), []).append(report)
    return [
        {
            "who": "manager" if manager else "agents",
            "round": number,
            "calls": len(made),
            "prompt": sum(report.prompt_tokens for report in made),
            "exact": sum(report.placed_exact_tokens for report in made),
            "corrected": sum(report.placed_corrected_tokens for report in made),
            "computed": sum(report.computed_tokens for report in made),
        }
        for (manager, number), made in sorted(members.items())
    ]


def as_json(run: Run) -> dict[str, Any]:
    """What was said, and in plain figures the rounds, the audits, and of each call why no less was computed."""
    return {
        "said": run.transcript,
        "rounds": rounds(run.reports),
        "calls": [
            {
                "agent": one.agent,
                "prompt": one.prompt_tokens,
                "exact": one.placed_exact_tokens,
                "corrected": one.placed_corrected_tokens,
                "spans": one.spans_found,
                "rung": one.rung,
                "reason": one.reason,
                "predicted": round(one.predicted_divergence, 4),
            }
            for one in run.reports
        ],
        "audits": [
            {"agent": one.agent, "kl": round(one.divergence, 4), "predicted": round(one.predicted, 4)}
            for one in run.audits
        ],
    }


def show(name: str, mode: str, number: int, run: Run, args: argparse.Namespace) -> None:
    """Print a run: a line for each round, and with `--calls` and `--say` more."""
    if args.say:
        print(*(f"{source}: {text}" for source, text in run.transcript), sep="\n")
    for row in rounds(run.reports):
        exact, corrected, computed = (row[kind] / row["prompt"] for kind in ("exact", "corrected", "computed"))
        print(
            f"{name:21}{mode:6}question {number} {row['who']:8}round {row['round']}: {row['calls']} calls,"
            f" {row['prompt']:5} prompt tokens, {exact:4.0%} exact, {corrected:4.0%} corrected, {computed:4.0%} new",
            flush=True,
        )
    if args.calls:
        for report in run.reports:
            print(f"    {report}")
    for audit in run.audits if args.calls else ():
        print(f"    {audit}")


async def main() -> None:
    """Run what was asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--teams", nargs="*", default=list(TEAMS), choices=list(TEAMS))
    parser.add_argument("--modes", nargs="*", default=["off", "exact", "auto"], choices=["off", "exact", "auto"])
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="how many, of those above")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--json", type=Path, help="where to write the figures; those of other teams there are kept")
    parser.add_argument("--say", action="store_true", help="print what was said")
    parser.add_argument("--calls", action="store_true", help="print every call, and why no less was computed")
    args = parser.parse_args()
    questions = QUESTIONS[: args.questions]
    kept: dict[str, Any] = {"model": args.model.rpartition("/")[2], "max_tokens": args.max_tokens, "teams": {}}
    if args.json and args.json.exists():
        kept = json.loads(args.json.read_text(encoding="utf-8")) | {"max_tokens": args.max_tokens}
    for mode in args.modes:
        number = 0 if mode == "auto" else len(questions) - 1
        for name in args.teams:
            kept["teams"].setdefault(name, {})[mode] = []
        async for runs in run_teams(args.teams, args.model, args.max_tokens, mode, questions[number:]):
            number += 1
            for name, run in runs.items():
                kept["teams"][name][mode].append({"question": number, **as_json(run)})
                show(name, mode, number, run, args)
            if args.json:
                args.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for name in args.teams:
        dense = {run["question"]: run["said"] for run in kept["teams"][name].get("off", ())}
        for mode, made in kept["teams"][name].items():
            for run in made:
                if mode != "off" and run["question"] in dense:
                    run["messages"], run["messages_as_off"] = same_messages(run["said"], dense[run["question"]])
                    at = f"{name:21}{mode:6}question {run['question']}"
                    print(f"{at}: {run['messages_as_off']} of {run['messages']} messages as with off")
    if args.json:
        args.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def same_messages(one: Sequence[Any], other: Sequence[Any]) -> tuple[int, int]:
    """Messages of a transcript, and how many at its beginning stand in the other one word for word."""
    pairs = [(list(a), list(b)) for a, b in zip(one, other, strict=False)]
    return len(one), next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))


if __name__ == "__main__":
    asyncio.run(main())
