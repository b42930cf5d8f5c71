"""The interceptor sees what flows between nodes and says it to the right engine and namespace, or does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from fake_engine import FakeEngine
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send
from pydantic import BaseModel

from langchain_kvcomm import ChatKVComm, intercept
from langchain_kvcomm.intercept import Interceptor, texts_in

TOPIC = "the tides of the northern sea in winter"


@pytest.fixture
def llm(engine: FakeEngine) -> ChatKVComm:
    return ChatKVComm(model="fake")


@pytest.fixture
def watch(llm: ChatKVComm) -> Iterator[Interceptor]:
    with intercept(llm) as watch:
        yield watch
    assert not watch._runs
    assert not watch._roots


class State(TypedDict, total=False):
    topic: str
    draft: str
    final: str


def team(llm: ChatKVComm) -> Any:
    def write(state: State) -> dict[str, str]:
        return {"draft": "DRAFT: " + str(llm.invoke(f"Write on {state['topic']}").content)}

    def edit(state: State) -> dict[str, str]:
        return {"final": str(llm.invoke(f"Edit this. {state['draft']}").content)}

    graph = StateGraph(State).add_node("write", write).add_node("edit", edit)
    return graph.add_edge(START, "write").add_edge("write", "edit").compile()


def said(engine: FakeEngine) -> list[tuple[int, str, str]]:
    return [(after, namespace, text) for after, namespace, texts in engine.expected for text in texts]


def test_texts_are_said_before_the_prompt_that_holds_them_and_once(
    engine: FakeEngine, llm: ChatKVComm, watch: Interceptor
) -> None:
    team(llm).invoke({"topic": TOPIC})
    written = f"I heard: Write on {TOPIC}"
    assert said(engine) == [
        (0, "default", TOPIC),
        (1, "default", f"DRAFT: {written}"),
        (2, "default", f"I heard: Edit this. DRAFT: {written}"),
    ]
    assert not watch._runs
    team(llm).invoke({"topic": TOPIC})
    assert len(said(engine)) == 6, "in another run, again"


def test_without_it_and_after_closing_nothing_is_said(engine: FakeEngine, llm: ChatKVComm) -> None:
    team(llm).invoke({"topic": TOPIC})
    watch = intercept(llm)
    assert intercept(llm) is watch
    watch.close()
    team(llm).invoke({"topic": TOPIC})
    assert engine.expected == []
    assert intercept(llm) is not watch
    intercept(llm).close()


@pytest.mark.usefixtures("watch")
def test_a_namespace_of_the_run_is_kept(engine: FakeEngine, llm: ChatKVComm) -> None:
    graph = team(llm)
    graph.invoke({"topic": TOPIC + "a"}, {"configurable": {"kv_namespace": "tenant-a"}})
    graph.invoke({"topic": TOPIC + "b"}, {"metadata": {"kv_namespace": "tenant-b"}})
    with ThreadPoolExecutor(4) as pool:
        names = [f"tenant-{number}" for number in range(8)]
        states = [({"topic": f"{TOPIC} {name}"}, {"configurable": {"kv_namespace": name}}) for name in names]
        list(pool.map(lambda state: graph.invoke(*state), states))
    seen = {(namespace, text.rpartition(TOPIC)[2].strip()) for _, namespace, text in said(engine)}
    assert seen == {("tenant-a", "a"), ("tenant-b", "b"), *((name, name) for name in names)}


@pytest.mark.usefixtures("watch")
def test_a_run_that_serves_two_tenants_is_said_to_neither_any_more(engine: FakeEngine, llm: ChatKVComm) -> None:
    def both(state: State) -> dict[str, str]:
        for name in ("a", "b"):
            llm.bind(kv_namespace=name).invoke(state["topic"])
        return {"draft": "a secret of one of the two, which one?"}

    StateGraph(State).add_node("both", both).add_edge(START, "both").compile().invoke({"topic": TOPIC})
    assert said(engine) == [(0, "a", TOPIC)]


@pytest.mark.usefixtures("watch")
async def test_async_and_streamed_runs_are_seen(engine: FakeEngine, llm: ChatKVComm) -> None:
    await asyncio.gather(*(team(llm).ainvoke({"topic": f"{TOPIC} {number}"}) for number in range(3)))
    assert len(said(engine)) == 9
    async for _ in team(llm).astream({"topic": TOPIC}, stream_mode="messages"):
        pass
    assert len(said(engine)) == 12


@pytest.mark.usefixtures("watch")
def test_tools_and_retrievers_are_seen(engine: FakeEngine, llm: ChatKVComm) -> None:
    class Finder(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return [Document(f"a passage that was found for {query}")]

    @tool
    def weather(town: str) -> str:
        """The weather."""
        return f"There is a lot of rain in {town} today."

    def node(state: State) -> dict[str, str]:
        passages = Finder().invoke(state["topic"])
        told = weather.invoke({"town": "Bergen"})
        return {"draft": str(llm.invoke(f"{told} {passages[0].page_content}").content)}

    StateGraph(State).add_node("node", node).add_edge(START, "node").compile().invoke({"topic": TOPIC})
    assert [text for after, _, text in said(engine) if after == 0] == [
        TOPIC,
        f"a passage that was found for {TOPIC}",
        "There is a lot of rain in Bergen today.",
    ]


@pytest.mark.usefixtures("watch")
def test_chains_without_a_graph_are_seen_and_other_models_are_not(engine: FakeEngine, llm: ChatKVComm) -> None:
    chain = ChatPromptTemplate.from_template("Write on {topic}") | llm
    chain.invoke({"topic": TOPIC})
    assert [(after, text) for after, _, text in said(engine)] == [(0, TOPIC), (1, f"I heard: Write on {TOPIC}")]
    (ChatPromptTemplate.from_template("Write on {topic}") | llm.bind(model="other")).invoke({"topic": TOPIC})
    assert len(said(engine)) == 2


@pytest.mark.usefixtures("watch")
def test_a_failing_node_leaves_nothing_behind(llm: ChatKVComm) -> None:
    def fail(state: State) -> dict[str, str]:
        llm.invoke(state["topic"])
        raise ValueError("no")

    graph = StateGraph(State).add_node("fail", fail).add_edge(START, "fail").compile()
    with pytest.raises(ValueError, match="no"):
        graph.invoke({"topic": TOPIC})


@pytest.mark.usefixtures("watch")
def test_an_engine_that_fails_fails_nobody(
    engine: FakeEngine, llm: ChatKVComm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("closed")

    monkeypatch.setattr(engine, "expect", broken)
    assert team(llm).invoke({"topic": TOPIC})["final"]
    assert "closed" in caplog.text


def test_texts_are_found_wherever_a_state_keeps_them() -> None:
    class Model(BaseModel):
        text: str

    @dataclass
    class Data:
        text: str

    texts = [f"{number} is the number of this long text" for number in range(9)]
    state = {
        "plain": texts[0],
        "messages": [HumanMessage(texts[1]), AIMessage([{"type": "text", "text": texts[2]}]), ("user", texts[3])],
        "nested": [{"deep": (texts[4], 5, None, object(), b"bytes", "short")}],
        "model": Model(text=texts[5]),
        "data": Data(texts[6]),
        "prompt": ChatPromptTemplate.from_template(texts[0] + "!").invoke({}),
    }
    command = Command(update=state, goto=[Send("node", {"x": texts[7]}), Send("node", Document(texts[8]))])
    assert sorted(texts_in(command)) == texts
    loop: list[Any] = [texts[0]]
    loop.append(loop)
    assert set(texts_in(loop)) == {texts[0]}
    assert list(texts_in(range(10**9))) == []
    assert list(texts_in([0] * 10**6 + [texts[0]])) == []
