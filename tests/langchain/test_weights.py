"""A LangGraph app on the default model's weights."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from kvcomm_agents.models.loading import DEFAULT_MODEL
from langchain_kvcomm import ChatKVComm

pytestmark = pytest.mark.weights

SYSTEM = {
    "writer": "You write one sentence about what the user names. Plain words, no lists, no headings.",
    "editor": "You are given a sentence and make it shorter. Plain words, no lists, no headings.",
}


@pytest.fixture
def llm() -> ChatKVComm:
    return ChatKVComm(model=DEFAULT_MODEL, temperature=0, max_tokens=16, kv_namespace="test-weights")


def _team(llm: ChatKVComm) -> Any:
    def member(agent: str) -> Any:
        def node(state: MessagesState) -> dict[str, Any]:
            return {"messages": [llm.invoke([SystemMessage(SYSTEM[agent]), *state["messages"]])]}

        return node

    graph = StateGraph(MessagesState)
    graph.add_node("writer", member("writer")).add_node("editor", member("editor"))
    graph.add_edge(START, "writer").add_edge("writer", "editor").add_edge("editor", END)
    return graph.compile()


def test_the_second_call_of_each_agent_reads_from_the_store(llm: ChatKVComm) -> None:
    team = _team(llm)
    runs = [team.invoke({"messages": [HumanMessage(f"{topic}, please.")]}) for topic in ("Rivers", "Bridges")]
    first, second = ([m for m in run["messages"] if isinstance(m, AIMessage)] for run in runs)
    for agent, before, after in zip(("writer", "editor"), first, second, strict=True):
        assert before.content
        assert before.response_metadata["kvcomm"]["agent"] == agent
        usage = after.usage_metadata
        assert usage is not None
        # At least the static prefix: the system message and what the template puts around it.
        assert usage["input_token_details"]["cache_read"] >= llm.get_num_tokens(SYSTEM[agent])
        assert usage["input_token_details"]["cache_read"] < usage["input_tokens"]


async def test_every_way_gives_the_same_text(llm: ChatKVComm) -> None:
    prompt = [SystemMessage(SYSTEM["writer"]), HumanMessage("The sea, please.")]
    dense = llm.invoke(prompt, reuse="off").content
    assert llm.invoke(prompt).content == dense
    assert "".join(str(chunk.content) for chunk in llm.stream(prompt)) == dense
    assert (await llm.ainvoke(prompt)).content == dense
    assert "".join([str(chunk.content) async for chunk in llm.astream(prompt)]) == dense
    replies = await asyncio.gather(*(llm.ainvoke(prompt) for _ in range(4)))
    assert [reply.content for reply in replies] == [dense] * 4


def _add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


async def test_every_way_makes_the_same_call(llm: ChatKVComm) -> None:
    pytest.importorskip("llguidance", reason="needs the tools extra")
    bound = llm.bind_tools([_add], tool_choice="_add", parallel_tool_calls=False).bind(max_tokens=40)
    dense = bound.invoke("What is 2 plus 5?", reuse="off")
    assert [(call["name"], set(call["args"])) for call in dense.tool_calls] == [("_add", {"a", "b"})]
    chunks = list(bound.stream("What is 2 plus 5?"))
    achunks = [chunk async for chunk in bound.astream("What is 2 plus 5?")]
    replies = [
        bound.invoke("What is 2 plus 5?"),
        await bound.ainvoke("What is 2 plus 5?"),
        sum(chunks[1:], chunks[0]),
        sum(achunks[1:], achunks[0]),
    ]
    for reply in replies:
        assert [call["args"] for call in reply.tool_calls] == [call["args"] for call in dense.tool_calls]
        assert reply.response_metadata["finish_reason"] == "tool_calls"


def test_a_call_in_the_history_is_read_from_the_store(llm: ChatKVComm) -> None:
    pytest.importorskip("llguidance", reason="needs the tools extra")
    bound = llm.bind_tools([_add], parallel_tool_calls=False).bind(max_tokens=40, kv_agent="adder", reuse="exact")
    question = HumanMessage("What is 6 plus 8?")
    first = bound.invoke([question], tool_choice="any")
    (call,) = first.tool_calls
    second = bound.invoke([question, first, ToolMessage("14", tool_call_id=call["id"])])
    assert first.usage_metadata is not None
    assert second.usage_metadata is not None
    read = second.usage_metadata["input_token_details"]["cache_read"]
    # all but the closing tag, which was forced at the very end and never computed
    assert read >= first.usage_metadata["total_tokens"] - 8, "the call is rendered as it was written"


def test_counting_agrees_with_the_report(llm: ChatKVComm) -> None:
    prompt = [SystemMessage(SYSTEM["writer"]), HumanMessage("Clouds, please.")]
    usage = llm.invoke(prompt, max_tokens=1).usage_metadata
    assert usage is not None
    assert llm.get_num_tokens_from_messages(prompt) == usage["input_tokens"]
    assert usage["output_tokens"] == 1


def test_leaving_a_stream_early_leaves_the_model_usable(llm: ChatKVComm) -> None:
    stream = llm.stream("Count to one hundred.", max_tokens=200)
    next(stream)
    stream.close()
    assert llm.invoke("Say hello.").content
