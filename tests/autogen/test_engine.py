"""Teams on a real engine with a tiny random model: exactness, and who shares with whom when all run at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("autogen_agentchat", reason="needs the autogen extra")

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import CancellationToken
from autogen_core.models import UserMessage

from autogen_kvcomm import KVCommChatCompletionClient
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.observe.report import RequestReport


@pytest.fixture
def engine(tiny: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = Engine(tiny("llama"), EngineConfig(reuse=ReuseConfig(mode="auto", min_span=8)))
    monkeypatch.setattr("kvcomm_agents.entrypoints.clients.settings.engine_for", lambda model, config: engine)
    yield engine
    engine.close()


def _settings(namespace: str, reuse: Any = "exact") -> dict[str, Any]:
    return {"temperature": 0.0, "max_tokens": 10, "kv_namespace": namespace, "reuse": reuse}


async def _team(namespace: str, task: str, reuse: Any = "exact") -> tuple[list[str], tuple[RequestReport, ...]]:
    client = KVCommChatCompletionClient("tiny", **_settings(namespace, reuse))
    agents = [AssistantAgent(name, client, system_message=f"You are {name}.") for name in ("a", "b")]
    result = await RoundRobinGroupChat(agents, max_turns=4).run(task=task)
    return [str(message.content) for message in result.messages], client.reports  # type: ignore[union-attr]


async def _graph(namespace: str, task: str, reuse: Any = "exact") -> list[str]:
    from langchain_core.messages import SystemMessage
    from langgraph.graph import END, START, MessagesState, StateGraph

    from langchain_kvcomm import ChatKVComm

    llm = ChatKVComm(model="tiny", **_settings(namespace, reuse))

    def node(name: str) -> Any:
        async def call(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await llm.ainvoke([SystemMessage(f"You are {name}."), *state["messages"]])]}

        return call

    graph = StateGraph(MessagesState).add_node("a", node("a")).add_node("b", node("b"))
    app = graph.add_edge(START, "a").add_edge("a", "b").add_edge("b", END).compile()
    return [str(message.content) for message in (await app.ainvoke({"messages": [("user", task)]}))["messages"]]


async def test_exact_reuse_changes_no_word_and_the_second_round_is_placed(engine: Engine) -> None:
    dense, _ = await _team("dense", "tell me of rivers", "off")
    exact, reports = await _team("exact", "tell me of rivers")
    assert exact == dense
    assert [report.agent for report in reports] == ["a", "b", "a", "b"]
    assert not any(report.placed_corrected_tokens for report in reports)
    for report in reports[2:]:
        assert report.placed_exact_tokens > report.prompt_tokens / 2


async def test_a_cancelled_stream_stops_the_model_and_the_team_goes_on(engine: Engine) -> None:
    token, task = CancellationToken(), [UserMessage(content="tell me of rivers", source="user")]
    client = KVCommChatCompletionClient("tiny", temperature=0.0, max_tokens=400, kv_namespace="left")
    stream = client.create_stream(task, cancellation_token=token)
    await anext(stream)
    token.cancel()
    with pytest.raises(asyncio.CancelledError):
        [piece async for piece in stream]
    assert await asyncio.to_thread(engine.settle, 10)
    assert client.last_report is None
    assert len((await _team("left", "tell me of seas"))[0]) == 5


async def test_teams_and_a_graph_at_once_are_right_and_share_nothing(engine: Engine) -> None:
    pytest.importorskip("langgraph", reason="needs the langgraph extra")
    task = "tell me of bridges"
    dense, _ = await _team("alone", task, "off")
    dense_graph = await _graph("alone", task, "off")
    before = len(engine.reports)
    (one, first), (two, second), graph = await asyncio.gather(
        _team("team-1", task), _team("team-2", task), _graph("graph", task)
    )
    assert one == two == dense
    assert graph == dense_graph
    seen: dict[str, list[RequestReport]] = {}
    for report in engine.reports[before:]:
        seen.setdefault(report.namespace, []).append(report)
    assert {namespace: len(reports) for namespace, reports in seen.items()} == {"team-1": 4, "team-2": 4, "graph": 2}
    # Each would find its first prompt, word for word, in the other two.
    assert [reports[0].placed_tokens for reports in seen.values()] == [0, 0, 0]
    assert [report.placed_tokens for report in first] == [report.placed_tokens for report in second]
