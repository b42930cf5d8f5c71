"""Who calls is found in every kind of team, and those who choose the next speaker are never given approximate KV."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_engine import FakeEngine

pytest.importorskip("autogen_agentchat", reason="needs the autogen extra")

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import (
    DiGraphBuilder,
    GraphFlow,
    MagenticOneGroupChat,
    RoundRobinGroupChat,
    SelectorGroupChat,
    Swarm,
)
from autogen_agentchat.tools import AgentTool

from autogen_kvcomm import KVCommChatCompletionClient
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.request import Request

SELECTORS = {"SelectorGroupChatManager", "MagenticOneOrchestrator"}


def _agents(client: KVCommChatCompletionClient, names: str = "abc", **more: Any) -> list[AssistantAgent]:
    return [AssistantAgent(name, client, system_message=f"You are {name}.", **more) for name in names]


def _select(request: Request) -> str | None:
    """The selector's and the orchestrator's part."""
    constraint = request.constraint
    if request.agent == "SelectorGroupChatManager":
        return "b"
    if constraint is not None and constraint.schema is not None:
        seen = sum(message.content.startswith("go on") for message in request.messages)
        answers = [seen > 1, False, True, "b", "go on"]
        keys = [
            "is_request_satisfied",
            "is_in_loop",
            "is_progress_being_made",
            "next_speaker",
            "instruction_or_question",
        ]
        return json.dumps({key: {"reason": "so", "answer": one} for key, one in zip(keys, answers, strict=True)})
    return None


async def test_every_agent_has_its_name_and_its_team(fake: FakeEngine) -> None:
    client = KVCommChatCompletionClient("fake")
    first, second = (RoundRobinGroupChat(_agents(client), max_turns=3) for _ in range(2))
    await first.run(task="start")
    await second.run(task="start")
    assert [request.agent for request in fake.requests] == ["a", "b", "c"] * 2
    conversations = [request.conversation for request in fake.requests]
    assert len(set(conversations)) == 2
    assert conversations == [conversations[0]] * 3 + [conversations[3]] * 3
    prompt = [(message.role, message.content) for message in fake.requests[1].messages]
    assert prompt == [("system", "You are b."), ("user", "start"), ("user", "I heard: start")]


async def test_an_agent_alone_has_none(fake: FakeEngine) -> None:
    client = KVCommChatCompletionClient("fake")
    await AssistantAgent("a", client).run(task="start")
    tool = AgentTool(AssistantAgent("inner", client, description="Helps."), return_value_as_last_message=True)
    outer = AssistantAgent("outer", client, tools=[tool], reflect_on_tool_use=True)
    assert (await outer.run(task="call it")).messages[-1].content
    assert {request.agent for request in fake.requests} == {None}
    assert [request.messages[-1].role for request in fake.requests] == ["user", "user", "user", "tool"]


@pytest.mark.parametrize("settings", [{}, {"reuse": "corrected"}])
async def test_selectors_are_exact(fake: FakeEngine, settings: Any) -> None:
    fake.script = _select
    client = KVCommChatCompletionClient("fake", **settings)
    await SelectorGroupChat(_agents(client), client, max_turns=2, allow_repeated_speaker=True).run(task="start")
    await MagenticOneGroupChat(_agents(client), client, max_turns=4).run(task="start")
    modes = {(request.agent in SELECTORS, request.reuse) for request in fake.requests}
    assert modes == {(True, "exact"), (False, settings.get("reuse"))}
    assert {request.agent for request in fake.requests} == SELECTORS | {"b"}


@pytest.mark.parametrize(
    "settings",
    [{"exact_selectors": False}, {"reuse": "off"}, {"engine_config": EngineConfig(reuse=ReuseConfig(mode="off"))}],
)
async def test_selectors_are_exact_unless_that_is_not_wanted(fake: FakeEngine, settings: Any) -> None:
    fake.script = _select
    client = KVCommChatCompletionClient("fake", **settings)
    await SelectorGroupChat(_agents(client), client, max_turns=2, allow_repeated_speaker=True).run(task="start")
    assert "exact" not in {request.reuse for request in fake.requests}


async def test_a_ledger_is_asked_for_once_and_not_shown_twice(fake: FakeEngine) -> None:
    fake.script = _select
    client = KVCommChatCompletionClient("fake")
    result = await MagenticOneGroupChat(_agents(client), client, max_turns=4).run(task="start")
    assert [message.source for message in result.messages].count("b") == 2
    ledgers = [one.constraint for one in fake.requests if one.constraint and one.constraint.schema]
    assert len(ledgers) == 3
    assert not any(constraint.show_schema for constraint in ledgers)


async def test_swarm_hands_over(fake: FakeEngine) -> None:
    client = KVCommChatCompletionClient("fake", prefer_tools=True)
    after = {"a": "b", "b": "c", "c": "a"}
    members = [
        AssistantAgent(name, client, system_message=f"You are {name}.", handoffs=[after[name]]) for name in after
    ]
    result = await Swarm(members, max_turns=4).run(task="start")
    assert [request.agent for request in fake.requests] == ["a", "b", "c", "a"]
    assert "Transferred to c, adopting the role of c immediately." in [
        message.content for message in fake.requests[2].messages
    ]
    assert result.stop_reason == "Maximum number of turns 4 reached."


async def test_graph_flow_fans_out_and_in(fake: FakeEngine) -> None:
    client = KVCommChatCompletionClient("fake")
    a, b, c = _agents(client)
    join = AssistantAgent("join", client, system_message="You are join.")
    graph = DiGraphBuilder()
    for node in (a, b, c, join):
        graph.add_node(node)
    for edge in [(a, b), (a, c), (b, join), (c, join)]:
        graph.add_edge(*edge)
    await GraphFlow(graph.get_participants(), graph=graph.build()).run(task="start")
    assert {request.agent for request in fake.requests} == {"a", "b", "c", "join"}
    assert fake.requests[-1].agent == "join"
    assert len(fake.requests[-1].messages) == 5


async def test_streaming_teams(fake: FakeEngine) -> None:
    client = KVCommChatCompletionClient("fake")
    team = RoundRobinGroupChat(_agents(client, model_client_stream=True), max_turns=2)
    pieces = [event async for event in team.run_stream(task="start")]
    assert "".join(one.content for one in pieces if type(one).__name__ == "ModelClientStreamingChunkEvent")
    assert [request.agent for request in fake.requests] == ["a", "b"]


async def test_teams_of_different_namespaces_share_nothing(fake: FakeEngine) -> None:
    for namespace in ("team-a", "team-b", "team-a"):
        client = KVCommChatCompletionClient("fake", kv_namespace=namespace)
        await RoundRobinGroupChat(_agents(client), max_turns=1).run(task="start")
        report = client.last_report
        assert report is not None
        assert report.namespace == namespace
        assert (report.placed_tokens > 0) == (len(fake.requests) == 3)


async def test_a_team_is_a_component(fake: FakeEngine) -> None:
    client = KVCommChatCompletionClient("fake", kv_namespace="team-a")
    team = RoundRobinGroupChat(_agents(client), max_turns=3)
    loaded = RoundRobinGroupChat.load_component(json.loads(team.dump_component().model_dump_json()))
    await loaded.run(task="start")
    assert {request.namespace for request in fake.requests} == {"team-a"}
