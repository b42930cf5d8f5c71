"""Whole graphs over the fake engine: what goes through state, and runs side by side."""

from __future__ import annotations

import asyncio
import threading
from operator import add
from typing import Annotated, Any, TypedDict

import pytest
from fake_engine import FakeEngine
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send

from kvcomm_agents.request import Completion, Request
from langchain_kvcomm import ChatKVComm


@pytest.fixture
def llm(engine: FakeEngine) -> ChatKVComm:
    return ChatKVComm(model="fake")


def _pair(llm: ChatKVComm) -> StateGraph[Any]:
    def member(name: str) -> Any:
        def node(state: MessagesState) -> dict[str, Any]:
            reply = llm.invoke([SystemMessage(f"You are {name}."), *state["messages"]])
            reply.name = name
            return {"messages": [reply]}

        return node

    graph = StateGraph(MessagesState).add_node("writer", member("writer")).add_node("editor", member("editor"))
    return graph.add_edge(START, "writer").add_edge("writer", "editor")


def test_span_tags_go_through_state_and_checkpoints(engine: FakeEngine, llm: ChatKVComm) -> None:
    team = _pair(llm).compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    team.invoke({"messages": [("user", "hello")]}, thread)
    team.invoke({"messages": [("user", "again")]}, thread)
    spans = {message.content: message.spans for message in engine.requests[-1].messages}
    answers = [message.content for message in engine.requests[-1].messages if message.role == "assistant"]
    assert len(answers) == 3
    assert {text: spans[text] for text in answers} == {text: (f"span of {text}",) for text in answers}
    assert spans["hello"] == spans["You are editor."] == ()


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
@pytest.mark.parametrize("mode", ["messages", "updates", "v3"])
def test_streamed_graphs_carry_them_too(engine: FakeEngine, llm: ChatKVComm, mode: Any) -> None:
    team = _pair(llm).compile()
    if mode == "v3":
        run = team.stream_events({"messages": [("user", "hello")]}, version="v3")
        assert run.output
    else:
        list(team.stream({"messages": [("user", "hello")]}, stream_mode=mode))
    assert [message.spans for message in engine.requests[-1].messages] == [(), (), ("span of I heard: hello",)]


async def test_a_streamed_answer_carries_them_as_the_whole_one_does(llm: ChatKVComm) -> None:
    chunks = [chunk async for chunk in llm.astream("hello")]
    for message in (sum(chunks[1:], chunks[0]), await llm.ainvoke("hello")):
        assert message.response_metadata["kvcomm"]["spans"] == ["span of I heard: hello"]


class Fan(TypedDict, total=False):
    topics: list[str]
    texts: Annotated[list[str], add]


def _fan_out(llm: ChatKVComm) -> Any:
    def write(state: dict[str, str]) -> dict[str, Any]:
        return {"texts": [llm.invoke(state["topic"]).content]}

    async def awrite(state: dict[str, str]) -> dict[str, Any]:
        return {"texts": [(await llm.ainvoke(state["topic"])).content]}

    graph = StateGraph(Fan).add_node("write", RunnableLambda(write, awrite))
    graph.add_conditional_edges(START, lambda state: [Send("write", {"topic": t}) for t in state["topics"]], ["write"])
    return graph.compile()


class Meeting(FakeEngine):
    """Answers nobody before `parties` are there."""

    def __init__(self, parties: int) -> None:
        super().__init__("meeting")
        self.barrier, self.parties = threading.Barrier(parties, timeout=10), parties
        self.here, self.full = 0, asyncio.Event()

    def generate(self, request: Request) -> Completion:
        self.barrier.wait()
        return super().generate(request)

    async def agenerate(self, request: Request) -> Completion:
        self.here += 1
        if self.here == self.parties:
            self.full.set()
        await asyncio.wait_for(self.full.wait(), 10)
        return await super().agenerate(request)


async def test_send_fans_out_at_the_same_time(engines: dict[str, FakeEngine]) -> None:
    topics = ["a", "b", "c", "d"]
    for face in ("sync", "async"):
        engines["meeting"] = Meeting(len(topics))
        graph = _fan_out(ChatKVComm(model="meeting"))
        state = {"topics": topics}
        got = await graph.ainvoke(state) if face == "async" else await asyncio.to_thread(graph.invoke, state)
        assert got["texts"] == [f"I heard: {topic}" for topic in topics]


class Slower(FakeEngine):
    """The first asked are the last answered."""

    async def astream(self, request: Request) -> Any:
        await asyncio.sleep(0.03 / (1 + len(self.requests)))
        async for event in super().astream(request):
            yield event


async def test_abatch_keeps_the_order(engines: dict[str, FakeEngine]) -> None:
    engines["slow"] = Slower("slow")
    texts = [f"text {number}" for number in range(12)]
    llm = ChatKVComm(model="slow")
    assert [reply.content for reply in await llm.abatch(texts)] == [f"I heard: {text}" for text in texts]
    bad = [HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])]
    replies = await llm.abatch([*texts[:3], bad, *texts[3:7]], return_exceptions=True)
    assert [isinstance(reply, AIMessage) for reply in replies] == [True] * 3 + [False] + [True] * 4


@pytest.mark.parametrize("streamed", [False, True])
async def test_cancelling_a_run_cancels_its_generations(engine: FakeEngine, llm: ChatKVComm, streamed: bool) -> None:
    engine.pause_s = 60
    graph = _fan_out(llm)
    state = {"topics": ["one two", "three four"]}

    async def run() -> Any:
        if streamed:
            return [chunk async for chunk in graph.astream(state, stream_mode="messages")]
        return await graph.ainvoke(state)

    task = asyncio.create_task(run())
    while len(engine.requests) < 2:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(engine.cancelled) == 2


async def test_leaving_a_streamed_run_cancels_its_generation(engine: FakeEngine, llm: ChatKVComm) -> None:
    run = _fan_out(llm).astream({"topics": ["one two three four"]}, stream_mode="messages")
    assert (await anext(run))[0].content == "I"
    engine.pause_s = 60
    await run.aclose()
    assert engine.cancelled == engine.requests
