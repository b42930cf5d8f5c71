"""The agent is found without the app saying so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import FakeEngine
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from langchain_kvcomm import ChatKVComm
from langchain_kvcomm.identity import find_agent


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"langgraph_node": "planner"}, "planner"),
        ({"langgraph_node": "model"}, None),
        ({"langgraph_node": "planner", "langgraph_checkpoint_ns": "planner:3f"}, "planner"),
        ({"langgraph_node": "model", "langgraph_checkpoint_ns": "outer:1|writer:2|model:3"}, "writer"),
        ({"langgraph_node": "agent", "langgraph_checkpoint_ns": "supervisor:1|agent:2"}, "supervisor"),
        ({"langgraph_node": "planner", "langgraph_checkpoint_ns": "outer:1|planner:2"}, "planner"),
        ({"langgraph_node": "model", "langgraph_checkpoint_ns": "tools:1|1|model:2"}, None),
        ({"langgraph_node": "model", "langgraph_checkpoint_ns": "model:2", "lc_agent_name": "math"}, "math"),
        ({"langgraph_node": "x", "lc_agent_name": "math"}, "math"),
    ],
)
def test_rule(metadata: dict[str, Any], expected: str | None) -> None:
    assert find_agent(None, metadata) == expected
    assert find_agent("explicit", metadata) == "explicit"


def _graph(call: Callable[[ChatKVComm, Any], Any], llm: ChatKVComm) -> Any:
    """An outer node `lead`, and a subgraph `crew` with the nodes `planner` and `model`."""

    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [call(llm, state["messages"])]}

    crew = StateGraph(MessagesState)
    crew.add_node("planner", node).add_node("model", node)
    crew.add_edge(START, "planner").add_edge("planner", "model").add_edge("model", END)
    graph = StateGraph(MessagesState)
    graph.add_node("lead", node).add_node("crew", crew.compile())
    graph.add_edge(START, "lead").add_edge("lead", "crew").add_edge("crew", END)
    return graph.compile()


def _stream(llm: ChatKVComm, messages: Any) -> Any:
    chunks = list(llm.stream(messages))
    return sum(chunks[1:], chunks[0])


def _in_a_pool(llm: ChatKVComm, messages: Any) -> Any:
    return llm.batch([messages, messages])[0]


@pytest.mark.parametrize("call", [ChatKVComm.invoke, _stream, _in_a_pool])
def test_in_a_graph(engine: FakeEngine, call: Callable[[ChatKVComm, Any], Any]) -> None:
    _graph(call, ChatKVComm(model="fake")).invoke({"messages": [HumanMessage("go")]})
    agents = list(dict.fromkeys(request.agent for request in engine.requests))
    # The node called `model` is known by the subgraph it is in.
    assert agents == ["lead", "planner", "crew"]


def test_when_the_app_streams_messages(engine: FakeEngine) -> None:
    graph = _graph(ChatKVComm.invoke, ChatKVComm(model="fake"))
    state = {"messages": [HumanMessage("go")]}
    pieces = [piece for _, (piece, _) in graph.stream(state, stream_mode="messages", subgraphs=True)]
    assert "".join(piece.content for piece in pieces[:3]) == "I heard: go"
    assert [request.agent for request in engine.requests] == ["lead", "planner", "crew"]


async def test_async_nodes(engine: FakeEngine) -> None:
    llm = ChatKVComm(model="fake")

    async def writer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await llm.ainvoke(state["messages"])]}

    async def critic(state: MessagesState) -> dict[str, Any]:
        return {"messages": [chunk async for chunk in llm.astream(state["messages"])][:1]}

    graph = StateGraph(MessagesState).add_node("writer", writer).add_node("critic", critic)
    graph.add_edge(START, "writer").add_edge(START, "critic")
    await asyncio.wait_for(graph.compile().ainvoke({"messages": [HumanMessage("go")]}), 10)
    assert sorted(str(request.agent) for request in engine.requests) == ["critic", "writer"]


def test_what_the_app_says_wins(engine: FakeEngine) -> None:
    llm = ChatKVComm(model="fake", kv_agent="ctor")
    llm.invoke("x", config={"metadata": {"langgraph_node": "planner"}})
    llm.bind(kv_agent="call").invoke("x")
    list(llm.stream("x", kv_agent="stream"))
    ChatKVComm(model="fake").invoke("x", config={"metadata": {"langgraph_node": "planner"}})
    ChatKVComm(model="fake").invoke("x")
    assert [request.agent for request in engine.requests] == ["ctor", "call", "stream", "planner", None]


def test_namespace_and_conversation_come_from_the_run(engine: FakeEngine) -> None:
    llm = ChatKVComm(model="fake", kv_namespace="mine")

    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [llm.invoke(state["messages"]), *llm.stream(state["messages"])][:1]}

    graph = StateGraph(MessagesState).add_node("n", node).add_edge(START, "n").compile()
    graph.invoke({"messages": ["hello"]}, {"configurable": {"kv_namespace": "tenant", "thread_id": "t1"}})
    llm.invoke("x", {"metadata": {"kv_namespace": "told"}})
    llm.invoke("x", kv_namespace="call", config={"metadata": {"kv_namespace": "told"}})
    llm.invoke("x")
    said = [(request.namespace, request.conversation) for request in engine.requests]
    assert said == [("tenant", "t1")] * 2 + [("told", None), ("call", None), ("mine", None)]
