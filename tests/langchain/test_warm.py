"""What retrievers find is warmed for the right tenant, and nothing an app sees changes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from fake_engine import FakeEngine
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langgraph.graph import START, MessagesState, StateGraph

from kvcomm_agents.errors import ContextLengthError
from langchain_kvcomm import ChatKVComm, WarmUp, warming

FOUND = [Document("the tide comes in"), Document("the tide goes out")]
TEXTS = ["the tide comes in", "the tide goes out"]


class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        if query == "nothing":
            raise LookupError(query)
        return FOUND


@pytest.fixture
def llm(engine: FakeEngine) -> ChatKVComm:
    return ChatKVComm(model="fake", kv_namespace="own")


def test_the_callback_warms_what_was_found(engine: FakeEngine, llm: ChatKVComm) -> None:
    watch = WarmUp(llm)
    assert Shelf().invoke("tides", {"callbacks": [watch]}) == FOUND
    assert asyncio.run(Shelf().ainvoke("tides", {"callbacks": [watch]})) == FOUND
    Shelf().invoke("tides", {"callbacks": [watch], "metadata": {"kv_namespace": "tenant"}})
    with pytest.raises(LookupError):
        Shelf().invoke("nothing", {"callbacks": [watch]})
    assert engine.warmed == [("own", TEXTS), ("own", TEXTS), ("tenant", TEXTS)]
    assert not watch._namespaces


def test_within_a_graph_the_runs_tenant_counts(engine: FakeEngine, llm: ChatKVComm) -> None:
    graph = StateGraph(MessagesState).add_node("search", lambda state: {"messages": [str(Shelf().invoke("tides"))]})
    app = graph.add_edge(START, "search").compile()
    app.invoke({"messages": []}, {"callbacks": [WarmUp(llm)], "configurable": {"kv_namespace": "tenant"}})
    assert engine.warmed == [("tenant", TEXTS)]


@pytest.mark.parametrize("wait", [False, True])
def test_a_chain_passes_documents_on(engine: FakeEngine, llm: ChatKVComm, wait: bool) -> None:
    chain = Shelf() | warming(llm, wait=wait)
    assert chain.invoke("tides") == FOUND
    assert asyncio.run(chain.ainvoke("tides", {"metadata": {"kv_namespace": "tenant"}})) == FOUND
    assert engine.warmed == [("own", TEXTS), ("tenant", TEXTS)]


@pytest.mark.parametrize("wait", [False, True])
def test_a_failure_is_logged_and_changes_nothing(
    engine: FakeEngine, llm: ChatKVComm, wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine.warm_error = ContextLengthError("a text of 9000 tokens")
    chain = Shelf() | warming(llm, wait=wait)
    with caplog.at_level(logging.WARNING):
        assert chain.invoke("tides") == FOUND
        assert asyncio.run(chain.ainvoke("tides")) == FOUND
    assert caplog.text.count("9000 tokens") == 2


def test_an_engine_that_reuses_nothing_is_left_alone(llm: ChatKVComm, caplog: pytest.LogCaptureFixture) -> None:
    from kvcomm_agents import EngineConfig, ReuseConfig
    from kvcomm_agents.engine.engine import Engine

    exact = Engine("fake", EngineConfig(reuse=ReuseConfig(mode="exact")))
    watched = ChatKVComm(model="fake")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChatKVComm, "engine", property(lambda self: exact))
        assert (Shelf() | warming(watched)).invoke("tides") == FOUND
    assert "mode='auto'" in caplog.text
