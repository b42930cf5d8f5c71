"""`ChatKVComm` against values of every type, in its constructor and in every kind of call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from bad_values import POOL
from client_options import EXACT, NAMES, OPTIONS
from fake_engine import FakeEngine
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.errors import ConfigError, KVCommError, PromptError
from langchain_kvcomm import ChatKVComm, intercept, warming
from langchain_kvcomm.messages import to_messages


async def _stream(llm: Any, **kwargs: Any) -> Any:
    return [chunk async for chunk in llm.astream("x", **kwargs)]


async def _sync(work: Callable[[], Any]) -> Any:
    return work()


WAYS: dict[str, Callable[..., Any]] = {
    "invoke": lambda llm, **kwargs: _sync(lambda: llm.invoke("x", **kwargs)),
    "stream": lambda llm, **kwargs: _sync(lambda: list(llm.stream("x", **kwargs))),
    "batch": lambda llm, **kwargs: _sync(lambda: llm.batch(["x"], **kwargs)),
    "bind": lambda llm, **kwargs: _sync(lambda: llm.bind(**kwargs).invoke("x")),
    "ainvoke": lambda llm, **kwargs: llm.ainvoke("x", **kwargs),
    "astream": _stream,
}
# Of a call and not of the constructor, in LangChain's words.
TOLD_AS = {"max_completion_tokens": "max_tokens"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", OPTIONS)
async def test_options_of_a_call(engine: FakeEngine, option: str, way: str) -> None:
    read, good = OPTIONS[option]
    llm = ChatKVComm(model="fake")
    for index, (name, make) in enumerate(POOL.items()):
        if name == "None" or (index % 5 and way not in ("invoke", "astream")):
            continue
        del engine.requests[:]
        if name in good:
            await WAYS[way](llm, **{option: make()})
            assert read(engine.requests[0]) == good[name], name
            continue
        with pytest.raises(KVCommError, match=f"^{TOLD_AS.get(option, option)}=") as caught:
            await WAYS[way](llm, **{option: make()})
        assert isinstance(caught.value, ValueError), name
        assert engine.requests == [], name


@pytest.mark.parametrize("setting", OPTIONS)
def test_settings_of_the_constructor(engine: FakeEngine, setting: str) -> None:
    read, good = OPTIONS[setting]
    for name, make in POOL.items():
        if name == "None":
            continue
        del engine.requests[:]
        if name in good:
            ChatKVComm(model="fake", **{setting: make()}).invoke("x")
            assert read(engine.requests[0]) == good[name], name
        else:
            with pytest.raises(ConfigError, match=f"^{TOLD_AS.get(setting, setting)}="):
                ChatKVComm(model="fake", **{setting: make()})


FOR_ALL: dict[str, set[str]] = {
    "model": {*NAMES, *EXACT},
    "prefer_tools": {"True", "False", "numpy True"},
    "max_string": {"1", "7", "numpy 7", "enum 7", "'7'"},
    "device": {"None", *NAMES, *EXACT},
    "dtype": {"None"},
    "control_strings": {"None"},
    "engine_config": {"None", "{}"},
}


@pytest.mark.parametrize("setting", FOR_ALL)
def test_settings_that_only_the_constructor_has(setting: str) -> None:
    for name, make in POOL.items():
        given: dict[str, Any] = {"model": "fake", setting: make()}
        if name in FOR_ALL[setting]:
            ChatKVComm(**given)
        else:
            with pytest.raises(ConfigError, match=f"^{setting}="):
                ChatKVComm(**given)


def test_errors_of_the_constructor_are_ours() -> None:
    with pytest.raises(ConfigError, match="num_ctx is no setting; it takes .*max_tokens"):
        ChatKVComm(model="fake", num_ctx=5)
    with pytest.raises(ConfigError, match="model.*required"):
        ChatKVComm()
    with pytest.raises(ConfigError, match="streaming='maybe'"):
        ChatKVComm(model="fake", streaming="maybe")
    with pytest.raises(ConfigError) as caught:
        ChatKVComm(model="fake", temperature=-1)
    assert isinstance(caught.value.__cause__, ValidationError)


def test_what_was_set_afterwards_is_checked_by_the_call(engine: FakeEngine) -> None:
    llm = ChatKVComm(model="fake")
    llm.timeout = "x"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="^timeout='x'"):
        llm.invoke("x")
    with pytest.raises(ConfigError, match="^max_tokens=0"):
        ChatKVComm(model="fake").model_copy(update={"max_tokens": 0}).invoke("x")
    assert engine.requests == []


async def test_timeouts_of_other_models(engine: FakeEngine) -> None:
    for given in ("30", 30, (5, 30), httpx.Timeout(30)):
        ChatKVComm(model="fake", timeout=given).invoke("x")
        ChatKVComm(model="fake", request_timeout=given).invoke("x")
        for way in WAYS.values():
            await way(ChatKVComm(model="fake", timeout=9), timeout=given)
    ChatKVComm(model="fake", timeout=9).invoke("x", timeout=httpx.Timeout(None))
    *others, last = [request.timeout_s for request in engine.requests]
    assert set(others) == {30.0}
    assert last is None


def test_what_means_nothing_here_is_passed_over(engine: FakeEngine) -> None:
    neutral: dict[str, Any] = {"user": "u", "stream_usage": True, "n": 1, "frequency_penalty": 0}
    ChatKVComm(model="fake", **neutral).invoke("x", **neutral)
    with pytest.raises(ConfigError, match="does not know n;"):
        ChatKVComm(model="fake").invoke("x", n=3)


@pytest.mark.parametrize("tools", [5, "add", [5], ["add"], [None], [b"x"], {"name": "add"}, [{"x": 1}], [object()]])
def test_tools_that_are_none(engine: FakeEngine, tools: Any) -> None:
    with pytest.raises(ConfigError):
        ChatKVComm(model="fake").invoke("x", tools=tools)
    with pytest.raises(ConfigError):
        ChatKVComm(model="fake").bind_tools(tools)
    assert engine.requests == []


@pytest.mark.parametrize("namespace", ["", 7, True, 0.5, ["a"], b"a", "a\ud800"])
async def test_a_namespace_of_the_run_that_is_none_falls_into_nobodys(engine: FakeEngine, namespace: Any) -> None:
    llm = ChatKVComm(model="fake", kv_namespace="mine")
    config: Any = {"configurable": {"kv_namespace": namespace}}
    with pytest.raises(ConfigError, match="^kv_namespace="):
        llm.invoke("x", config)
    with pytest.raises(ConfigError, match="^kv_namespace="):
        await llm.ainvoke("x", config)
    with pytest.raises(ConfigError, match="^kv_namespace="):
        list(RunnableLambda(lambda text: list(llm.stream(text))).stream("x", config))
    with pytest.raises(ConfigError, match="^kv_namespace="):
        warming(llm).invoke([], config)
    with intercept(llm), pytest.raises(ConfigError, match="^kv_namespace="):
        RunnableLambda(lambda text: llm.invoke(text)).invoke("a text that is long enough to be a span", config)
    assert (engine.requests, engine.warmed, engine.expected) == ([], [], [])


def test_the_response_cache_keeps_engines_and_tenants_apart(engine: FakeEngine) -> None:
    cache = InMemoryCache()
    exact = EngineConfig(reuse=ReuseConfig(mode="exact"))
    models = [
        ChatKVComm(model="fake", cache=cache),
        ChatKVComm(model="fake", cache=cache, engine_config=exact),
        ChatKVComm(model="fake", cache=cache, engine_config=EngineConfig(max_context=99)),
        ChatKVComm(model="fake", cache=cache, engine_config=EngineConfig(reuse=ReuseConfig(exact_agents={"a", "b"}))),
        ChatKVComm(model="fake", cache=cache, control_strings="tokens"),
        ChatKVComm(model="fake", cache=cache, kv_namespace="b"),
    ]
    for _ in range(2):
        for llm in models:
            llm.invoke("x")
    assert len(engine.requests) == len(models)
    for namespace in ("one", "two", "one"):
        models[0].invoke("x", {"configurable": {"kv_namespace": namespace}})
    assert [request.namespace for request in engine.requests[len(models) :]] == ["one", "two"]


def test_the_response_cache_sees_the_environment(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = ChatKVComm(model="fake", cache=InMemoryCache())
    llm.invoke("x")
    monkeypatch.setenv("KVCOMM_REUSE", "exact")
    llm.invoke("x")
    assert len(engine.requests) == 2


FOREIGN: list[tuple[Any, str]] = [
    ({"type": "redacted_thinking", "data": "zz"}, ""),
    ({"type": "thinking", "thinking": "hm"}, ""),
    ({"type": "reasoning", "reasoning": "hm"}, ""),
    ({"type": "refusal", "refusal": "I cannot."}, "I cannot."),
    ({"type": "output_text", "text": "said"}, "said"),
    ({"type": "web_search_call", "id": "w"}, ""),
    ({"type": "server_tool_call", "name": "search", "args": {}, "id": "s"}, ""),
    ({"type": "server_tool_result", "tool_call_id": "s", "output": "o"}, ""),
    ({"type": "executable_code", "executable_code": "print(1)"}, ""),
    ({"type": "non_standard", "value": {"x": 1}}, ""),
    ({"type": "image_generation_call", "result": "iVBO"}, ""),
    ({"type": "text-plain", "text": "plain", "mime_type": "text/plain"}, "plain"),
    ({"text": "without a type"}, "without a type"),
    ({"type": "text", "text": None}, ""),
    ({"type": "text", "text": "cited", "citations": [{"url": "u"}]}, "cited"),
]


@pytest.mark.parametrize(("block", "text"), FOREIGN, ids=lambda value: str(value)[:30])
def test_what_another_model_left_in_a_history(engine: FakeEngine, block: Any, text: str) -> None:
    history = [HumanMessage("q"), AIMessage([block, {"type": "text", "text": " ok"}]), HumanMessage("go on")]
    ChatKVComm(model="fake").invoke(history)
    assert engine.requests[0].messages[1].content == f"{text} ok"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "json", "json": {"a": 1}}], '{"a": 1}'),
        ([{"json": [1, "é"]}], '[1, "é"]'),
        ([{"type": "text", "text": "a"}, {"type": "json", "json": None}], "anull"),
        ([{"type": "search_result", "source": "s", "content": [{"type": "text", "text": "found"}]}], "found"),
        ([{"type": "document", "source": {"type": "text", "data": "a page"}}], "a page"),
        ([{"type": "resource", "resource": {"uri": "u", "text": "a file"}}], "a file"),
    ],
)
def test_blocks_of_a_tools_result_that_hold_text(content: Any, text: str) -> None:
    assert to_messages([ToolMessage(content, tool_call_id="c")])[0].content == text


@pytest.mark.parametrize("role", [HumanMessage, AIMessage])
@pytest.mark.parametrize("text", [5, ["x"], {"text": "x"}, b"x"])
def test_a_block_of_text_holds_a_text(role: Any, text: Any) -> None:
    with pytest.raises(PromptError, match="text"):
        to_messages([role([{"type": "text", "text": text}])])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "document", "source": {"type": "base64", "data": "eA=="}},
    ]
    + [{"type": "file", "base64": "eA=="}, {"type": "non_standard", "value": 1}, {"type": "json", "json": object()}],
)
def test_what_holds_no_text_is_refused_in_a_tools_result(block: Any) -> None:
    with pytest.raises(PromptError):
        to_messages([ToolMessage([block], tool_call_id="c")])


def test_arguments_that_json_does_not_know(engine: FakeEngine) -> None:
    import datetime

    call = {"name": "at", "args": {"day": datetime.date(2024, 5, 6)}, "id": "c", "type": "tool_call"}
    history = [HumanMessage("q"), AIMessage("", tool_calls=[call]), ToolMessage("done", tool_call_id="c")]
    ChatKVComm(model="fake").invoke(history)
    assert engine.requests[0].messages[1].extra["tool_calls"][0]["function"]["arguments"] == {"day": "2024-05-06"}


def test_another_model_beside_it_is_left_alone() -> None:
    assert FakeListChatModel(responses=["hi"]).invoke("x").content == "hi"
    assert isinstance(AIMessageChunk(content=""), AIMessage)
