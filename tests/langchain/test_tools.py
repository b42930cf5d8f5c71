"""Tools and structured output over the fake engine: every form of asking comes to the right request."""

from __future__ import annotations

import re
from typing import Any, TypedDict

import pytest
from fake_engine import FakeEngine
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from kvcomm_agents.errors import ConfigError, MissingExtraError
from kvcomm_agents.request import Constraint
from langchain_kvcomm import ChatKVComm, register


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@tool
def stop() -> None:
    """Stops."""


class Joke(BaseModel):
    """A joke."""

    setup: str = Field(description="how it begins")
    marks: int


class JokeDict(TypedDict):
    """A joke."""

    setup: str
    marks: int


@pytest.fixture
def llm(engine: FakeEngine) -> ChatKVComm:
    return ChatKVComm(model="fake")


NAMED = {"type": "function", "function": {"name": "stop"}}


@pytest.mark.parametrize(
    ("choice", "calls", "named"),
    [
        (None, "auto", None),
        ("auto", "auto", None),
        ("any", "required", None),
        ("required", "required", None),
        (True, "required", None),
        ("none", "none", None),
        (False, "none", None),
        ("stop", "required", "stop"),
        (NAMED, "required", "stop"),
        ({"type": "tool", "name": "stop"}, "required", "stop"),
        ({"type": "any"}, "required", None),
    ],
)
def test_every_form_of_tool_choice(engine: FakeEngine, llm: ChatKVComm, choice: Any, calls: Any, named: Any) -> None:
    llm.bind_tools([add, stop], tool_choice=choice).invoke("hello")
    llm.invoke("hello", tools=[add, stop], tool_choice=choice)
    for request in engine.requests:
        assert [spec.name for spec in request.tools] == ["add", "stop"]
        assert request.tools[0].parameters["required"] == ["a", "b"]
        assert request.constraint == Constraint(calls=calls, tool=named, show_schema=False)


def test_wrong_choices_and_tools_are_refused(llm: ChatKVComm) -> None:
    with pytest.raises(ConfigError, match=r"'subtract'.*add"):
        llm.bind_tools([add], tool_choice="subtract")
    with pytest.raises(ConfigError, match="web_search"):
        llm.bind_tools([{"type": "web_search"}])
    with pytest.raises(ConfigError, match="xml"):
        llm.invoke("x", response_format={"type": "xml"})
    with pytest.raises(ConfigError, match="by_magic"):
        llm.with_structured_output(Joke, method="by_magic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a schema"):
        llm.with_structured_output(None)
    with pytest.raises(ConfigError, match="magic"):
        llm.with_structured_output(Joke, magic=True)


def test_no_tools_bind_nothing(engine: FakeEngine, llm: ChatKVComm) -> None:
    llm.bind_tools([], tool_choice="any", strict=True).invoke("x")
    assert (engine.requests[0].tools, engine.requests[0].constraint) == ((), None)


def test_other_options(engine: FakeEngine, llm: ChatKVComm) -> None:
    llm.bind_tools([add], parallel_tool_calls=False).invoke("x")
    llm.bind_tools(
        [add], response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    ).invoke("x")
    ChatKVComm(model="fake", max_string=9).bind_tools([add]).invoke("x")
    first, second, third = (request.constraint for request in engine.requests)
    assert first == Constraint(calls="auto", parallel=False, show_schema=False)
    assert second == Constraint(schema={"type": "object"}, calls="auto")
    assert third == Constraint(calls="auto", show_schema=False, max_string=9)


def test_small_models_are_made_to_call_once_and_then_to_speak(engine: FakeEngine) -> None:
    llm = ChatKVComm(model="fake", prefer_tools=True).bind_tools([add])
    first = llm.invoke("1 and 2")
    llm.invoke([HumanMessage("1 and 2"), first, ToolMessage("3", tool_call_id=first.tool_calls[0]["id"])])
    llm.invoke("x", tool_choice="none")
    assert [(r.constraint.calls, r.constraint.parallel) for r in engine.requests if r.constraint] == [
        ("required", False),
        ("none", False),
        ("none", False),
    ]


async def test_calls_are_the_same_whole_and_streamed(llm: ChatKVComm) -> None:
    bound = llm.bind_tools([add], tool_choice="any")
    whole = [bound.invoke("7"), await bound.ainvoke("7")]
    chunks = list(bound.stream("7"))
    achunks = [chunk async for chunk in bound.astream("7")]
    for message in [*whole, sum(chunks[1:], chunks[0]), sum(achunks[1:], achunks[0])]:
        assert isinstance(message, AIMessage)
        assert message.content == ""
        (call,) = message.tool_calls
        assert (call["name"], call["args"]) == ("add", {"a": 7, "b": 7})
        assert str(call["id"]).startswith("call_")
        assert message.response_metadata["finish_reason"] == "tool_calls"
    pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
    assert pieces[0]["name"] == "add"
    assert {(piece["name"], piece["id"], piece["index"]) for piece in pieces[1:]} == {(None, None, 0)}


def test_a_call_cut_off_is_invalid(llm: ChatKVComm) -> None:
    reply = llm.bind_tools([add], tool_choice="any").invoke("7", max_tokens=5)
    assert reply.tool_calls == []
    (call,) = reply.invalid_tool_calls
    assert (call["name"], call["args"]) == ("add", '{"a": 7,')
    assert reply.response_metadata["finish_reason"] == "length"


def test_text_with_tools_bound_stays_text(llm: ChatKVComm) -> None:
    bound = llm.bind_tools([add])
    assert bound.invoke("a < b").content == "I heard: a < b"
    assert "".join(str(chunk.content) for chunk in bound.stream("a < b")) == "I heard: a < b"


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Joke, JokeDict, Joke.model_json_schema()])
def test_structured_output(engine: FakeEngine, llm: ChatKVComm, method: Any, schema: Any) -> None:
    joke = llm.with_structured_output(schema, method=method).invoke("call 'knock' 4")
    want = {"setup": "knock", "marks": 4}
    assert joke == (Joke(**want) if schema is Joke else want)
    raw = llm.with_structured_output(schema, method=method, include_raw=True).invoke("call 'knock' 4")
    assert isinstance(raw, dict)
    assert (raw["parsed"], raw["parsing_error"]) == (joke, None)
    constraint = engine.requests[0].constraint
    assert constraint is not None
    if method == "function_calling":
        assert (constraint.calls, constraint.schema, constraint.parallel) == ("required", None, False)
    else:
        assert constraint.show_schema is (method == "json_schema")
        assert constraint.schema is not None
        assert set(constraint.schema["properties"]) == {"setup", "marks"}


def test_json_mode_without_a_schema(engine: FakeEngine, llm: ChatKVComm) -> None:
    assert llm.with_structured_output(None, method="json_mode").invoke("x") == {}
    assert engine.requests[0].constraint == Constraint(schema={"type": "object"}, show_schema=False)


def test_profile_says_what_is_there(llm: ChatKVComm) -> None:
    assert llm.profile is not None
    assert llm.profile["tool_calling"]
    assert llm.profile["structured_output"]
    assert not llm.profile["image_inputs"]
    assert "max_input_tokens" not in llm.profile, "a model that is not here"


def test_without_llguidance_binding_says_what_to_install(llm: ChatKVComm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    for bind in (lambda: llm.bind_tools([add]), lambda: llm.with_structured_output(Joke)):
        with pytest.raises(MissingExtraError, match=re.escape('pip install "kvcomm-agents[tools]"')):
            bind()
    assert llm.bind_tools([]).invoke("x").content


def test_create_agent_asks_for_its_response_format(engine: FakeEngine, llm: ChatKVComm) -> None:
    agents = pytest.importorskip("langchain.agents")
    asked = {"messages": [("user", "'knock' 4")]}
    answer = agents.create_agent(llm, [], response_format=Joke).invoke(asked)["structured_response"]
    assert answer == Joke(setup="knock", marks=4)
    constraint = engine.requests[-1].constraint
    assert constraint is not None
    assert constraint.schema is not None
    assert set(constraint.schema["properties"]) == {"setup", "marks"}


def test_register_makes_init_chat_model_know_it(engine: FakeEngine) -> None:
    base = pytest.importorskip("langchain.chat_models.base")
    register()
    try:
        assert base.init_chat_model("kvcomm:fake", temperature=0).invoke("x").content == "I heard: x"
        chosen = base.init_chat_model(configurable_fields=("model", "model_provider"))
        config = {"configurable": {"model": "fake", "model_provider": "kvcomm"}}
        assert chosen.invoke("x", config).content == "I heard: x"
    finally:
        base._BUILTIN_PROVIDERS.pop("kvcomm")
