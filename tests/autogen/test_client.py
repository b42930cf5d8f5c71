"""What AutoGen's `ChatCompletionClient` asks for beyond the contract of all clients, over the fake engine."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any, Literal

import pytest
from fake_engine import FakeEngine
from pydantic import BaseModel

pytest.importorskip("autogen_agentchat", reason="needs the autogen extra")

from autogen_core import EVENT_LOGGER_NAME, CancellationToken, FunctionCall
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    CreateResult,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    RequestUsage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool

from autogen_kvcomm import KVCommChatCompletionClient
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.entrypoints.clients.settings import ClientOptions, ClientSettings
from kvcomm_agents.errors import ConfigError, PromptError

HELLO = [UserMessage(content="hello you", source="user")]


@pytest.fixture
def client(fake: FakeEngine) -> KVCommChatCompletionClient:
    return KVCommChatCompletionClient("fake")


def add(a: int, b: int) -> int:
    return a + b


ADD = FunctionTool(add, description="Adds.", name="add")


def test_the_options_are_the_settings() -> None:
    assert set(ClientOptions.__annotations__) == set(ClientSettings.__dataclass_fields__) - {"model"}


def test_component_round_trip(fake: FakeEngine) -> None:
    config = EngineConfig(max_context=99, reuse=ReuseConfig(exact_agents=frozenset({"judge"}), max_divergence=0.1))
    client = KVCommChatCompletionClient(
        "fake",
        temperature=0.5,
        stop=("x",),
        kv_namespace="team",
        engine_config=config,
        schemas={"A": {"type": "object"}},
    )
    dumped = client.dump_component()
    assert dumped.provider == "autogen_kvcomm.KVCommChatCompletionClient"
    for model in (dumped, dumped.model_dump(), json.loads(dumped.model_dump_json())):
        loaded = ChatCompletionClient.load_component(model)
        assert isinstance(loaded, KVCommChatCompletionClient)
        assert loaded._settings == client._settings
    short = {"provider": dumped.provider, "config": {"model": "fake", "temperature": 0.25}}
    assert ChatCompletionClient.load_component(short).dump_component().config["temperature"] == 0.25  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="temperature"):
        ChatCompletionClient.load_component({**short, "config": {"model": "fake", "temperature": -1}})


async def test_all_kinds_of_messages(client: KVCommChatCompletionClient, fake: FakeEngine) -> None:
    call = FunctionCall(id="1", name="add", arguments='{"a": 1, "b": 2}')
    result = FunctionExecutionResult(content="3", name="add", call_id="1", is_error=False)
    error = FunctionExecutionResult(content="no", name="add", call_id="2", is_error=True)
    messages = [
        SystemMessage(content="first"),
        SystemMessage(content="second"),
        UserMessage(content=["one", " two"], source="user"),
        AssistantMessage(content=[call], thought="I add", source="me"),
        FunctionExecutionResultMessage(content=[result, error]),
        AssistantMessage(content="three", source="me"),
        SystemMessage(content="third"),
        *HELLO,
    ]
    await client.create(messages)
    said = fake.requests[0].messages
    assert [(message.role, message.content) for message in said] == [
        ("system", "first"),
        ("system", "second"),
        ("user", "one two"),
        ("assistant", "I add"),
        ("tool", "3"),
        ("tool", "no"),
        ("assistant", "three"),
        ("system", "third"),
        ("user", "hello you"),
    ]
    with pytest.raises(PromptError, match="Unknown message type"):
        await client.create(["hello"])  # type: ignore[list-item]


async def test_text_beside_calls_is_the_thought(client: KVCommChatCompletionClient, fake: FakeEngine) -> None:
    fake.script = lambda request: 'I add. <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
    *pieces, last = [one async for one in client.create_stream(HELLO, tools=[ADD])]
    whole = await client.create(HELLO, tools=[ADD])
    assert "".join(str(piece) for piece in pieces).strip() == "I add."
    for result in (last, whole):
        assert isinstance(result, CreateResult)
        assert (result.thought, result.finish_reason, result.cached) == ("I add.", "function_calls", False)
        assert isinstance(result.content, list)
        assert json.loads(result.content[0].arguments) == {"a": 1, "b": 2}


@pytest.mark.parametrize("choice", ["required", ADD, "any way"])
async def test_a_choice_without_its_tool_is_refused(client: KVCommChatCompletionClient, choice: Any) -> None:
    with pytest.raises(ConfigError, match="tool_choice"):
        await client.create(HELLO, tool_choice=choice)


async def test_json_output(client: KVCommChatCompletionClient, fake: FakeEngine) -> None:
    class Pick(BaseModel):
        name: str
        why: str

    spelled = [UserMessage(content='Answer as {"name": string, "why": string}', source="user")]
    for messages, json_output in [(HELLO, True), (HELLO, Pick), (spelled, Pick), (HELLO, False), (HELLO, None)]:
        await client.create(messages, json_output=json_output)
    narrow = {"type": "object", "properties": {"name": {"enum": ["a", "b"]}}}
    await KVCommChatCompletionClient("fake", schemas={"Pick": narrow}).create(HELLO, json_output=Pick)
    any_object, shown, told, no, none, narrowed = (request.constraint for request in fake.requests)
    assert (no, none) == (None, None)
    assert any_object is not None
    assert (any_object.schema, any_object.show_schema) == ({"type": "object"}, False)
    assert shown is not None
    assert (shown.schema, shown.show_schema) == (Pick.model_json_schema(), True)
    assert told is not None
    assert (told.schema, told.show_schema) == (Pick.model_json_schema(), False), "the prompt says it already"
    assert narrowed is not None
    assert narrowed.schema == narrow
    for wrong in ("yes", dict):
        with pytest.raises(ConfigError, match="json_output"):
            await client.create(HELLO, json_output=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="response_format"):
        await client.create(HELLO, json_output=True, extra_create_args={"response_format": {"type": "text"}})


async def test_usage_and_reports_add_up(client: KVCommChatCompletionClient) -> None:
    assert (client.last_report, client.actual_usage()) == (None, RequestUsage(0, 0))
    first = await client.create(HELLO)
    *_, second = [one async for one in client.create_stream(HELLO)]
    assert isinstance(second, CreateResult)
    assert client.actual_usage() == client.total_usage() == RequestUsage(4 + 4, 4 + 4)
    assert first.usage == second.usage == RequestUsage(4, 4)
    assert [(report.prompt_tokens, report.placed_tokens) for report in client.reports] == [(4, 0), (4, 3)]
    assert client.last_report == client.reports[-1]
    await client.close()
    assert (await client.create(HELLO)).content, "closing a client leaves the engine to the others"


def test_counting(client: KVCommChatCompletionClient) -> None:
    assert client.count_tokens(HELLO) == 4
    assert client.count_tokens(HELLO, tools=[ADD]) > 4
    assert client.remaining_tokens(HELLO) == 1000 - 4
    assert client.remaining_tokens(HELLO * 300) == 1000 - 1200


def test_model_info(client: KVCommChatCompletionClient, monkeypatch: pytest.MonkeyPatch) -> None:
    able: Literal[True] = True
    assert client.model_info == {
        "vision": False,
        "function_calling": able,
        "json_output": able,
        "structured_output": able,
        "family": "unknown",
        "multiple_system_messages": True,
    }
    assert client.capabilities == client.model_info
    monkeypatch.setattr("autogen_kvcomm.client.has_llguidance", lambda: False)
    assert not client.model_info["function_calling"]
    assert not client.model_info["structured_output"]


async def test_calls_are_logged(client: KVCommChatCompletionClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, EVENT_LOGGER_NAME)
    await client.create(HELLO)
    [one async for one in client.create_stream(HELLO, tools=[ADD])]
    events = [json.loads(str(record.msg)) for record in caplog.records if record.name == EVENT_LOGGER_NAME]
    assert [event["type"] for event in events] == ["LLMCall", "LLMStreamStart", "LLMStreamEnd"]
    assert events[0]["messages"] == [{"role": "user", "content": "hello you", "name": "user"}]
    for event in (events[0], events[2]):
        assert (event["prompt_tokens"], event["completion_tokens"]) == (4, 4)
        assert event["response"]["content"] == "I heard: hello you"
        assert event["kvcomm"]["prompt_tokens"] == 4


async def test_a_token_cancels_a_call_from_any_thread(client: KVCommChatCompletionClient, fake: FakeEngine) -> None:
    fake.pause_s = 0.05
    token = CancellationToken()
    threading.Timer(0.1, token.cancel).start()
    with pytest.raises(asyncio.CancelledError):
        await client.create([UserMessage(content="w " * 100, source="user")], cancellation_token=token)
    assert len(fake.cancelled) == 1
    with pytest.raises(asyncio.CancelledError):
        await client.create(HELLO, cancellation_token=token)
    assert len(fake.cancelled) == 1, "a token that was cancelled before lets nothing begin"
    assert (await client.create(HELLO)).content


async def test_a_token_outlives_the_calls_it_was_given_to(client: KVCommChatCompletionClient) -> None:
    token = CancellationToken()
    await client.create(HELLO, cancellation_token=token)
    [one async for one in client.create_stream(HELLO, cancellation_token=token)]
    await asyncio.to_thread(token.cancel)
