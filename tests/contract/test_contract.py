"""What every framework's client must do, asked of each in its framework's own words, over an engine without a model."""

from __future__ import annotations

from typing import Any

import pytest
from faces import ADD, STOP, Face, Joke
from fake_engine import FakeEngine

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.errors import ConfigError, PromptError
from kvcomm_agents.request import Constraint, SamplingParams

ASKED = [("system", "You are terse."), ("user", "one two three")]


async def test_text(face: Face, fake: FakeEngine) -> None:
    reply = await face.ask(ASKED)
    assert (reply.text, reply.calls, reply.reason) == ("I heard: one two three", [], "stop")
    (request,) = fake.requests
    assert [(message.role, message.content) for message in request.messages] == ASKED
    assert (request.tools, request.constraint, request.agent, request.namespace) == ((), None, None, "default")


async def test_a_stream_ends_with_the_whole_answer(face: Face) -> None:
    pieces, reply = await face.stream(ASKED)
    assert pieces == ["I", " heard:", " one", " two", " three"]
    assert (reply.text, reply.reason, reply.output) == ("I heard: one two three", "stop", 5)


async def test_usage(face: Face, fake: FakeEngine) -> None:
    first = await face.ask(ASKED)
    second = await face.ask([ASKED[0], ("user", "something else")])
    _, third = await face.stream(ASKED)
    for reply, request in zip([first, second, third], fake.requests, strict=True):
        assert reply.prompt == fake.count_tokens(request.messages)
        assert reply.output == len(reply.text.split())
    if first.cached is not None:  # AutoGen and AG2 Classic have no such count
        assert [first.cached, second.cached] == [0, 6], "the system message and a header"
        assert third.cached == third.prompt - 1


@pytest.mark.parametrize(
    ("choice", "calls", "named"),
    [(None, "auto", None), ("auto", "auto", None), ("required", "required", None), ("none", "none", None)]
    + [(("tool", "stop"), "required", "stop")],
)
async def test_each_tool_choice(face: Face, fake: FakeEngine, choice: Any, calls: Any, named: Any) -> None:
    reply = await face.ask([("user", "seven 7")], [ADD, STOP], choice)
    _, streamed = await face.stream([("user", "seven 7")], [ADD, STOP], choice=choice)
    for request in fake.requests:
        assert request.tools == (ADD, STOP)
        assert request.constraint == Constraint(calls=calls, tool=named, show_schema=False)
    for one in (reply, streamed):
        if calls == "required":
            assert one.arguments == [(named or "add", {} if named else {"a": 7, "b": 7})]
            assert (one.text, one.reason) == ("", "tool_calls")
        else:
            assert (one.text, one.calls, one.reason) == ("I heard: seven 7", [], "stop")


async def test_parallel_calls(face: Face, fake: FakeEngine) -> None:
    asked = [("user", "call twice: 7")]
    reply, (_, streamed) = await face.ask(asked, [ADD]), await face.stream(asked, [ADD])
    assert reply.arguments == streamed.arguments == [("add", {"a": 7, "b": 7})] * 2
    one = await face.ask(asked, [ADD], parallel_tool_calls=False)
    assert one.arguments == [("add", {"a": 7, "b": 7})]


async def test_calls_and_results_in_the_history(face: Face, fake: FakeEngine) -> None:
    calls = [("id1", "add", {"a": 1, "b": 2}), ("id2", "add", {"a": 3, "b": 4})]
    turns = [("user", "add them"), ("calls", calls), ("result", "id1", "add", "3"), ("result", "id2", "add", "oh no")]
    reply = await face.ask(turns, [ADD])
    assert reply.text == "I heard: oh no"
    user, called, first, second = fake.requests[0].messages
    assert (user.role, called.role, called.content) == ("user", "assistant", "")
    functions = [(call["id"], call["function"]) for call in called.extra["tool_calls"]]
    assert functions == [(id, {"name": name, "arguments": arguments}) for id, name, arguments in calls]
    assert [(one.role, one.content, one.extra["tool_call_id"]) for one in (first, second)] == [
        ("tool", "3", "id1"),
        ("tool", "oh no", "id2"),
    ]


async def test_a_call_cut_off_says_so(face: Face) -> None:
    reply = await face.ask([("user", "7")], [ADD], "required", max_tokens=5)
    assert reply.reason == "length"
    assert reply.calls == [("add", '{"a": 7,')]


async def test_the_frameworks_agent_runs_the_tool(face: Face, fake: FakeEngine) -> None:
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    assert await face.loop("call 7", add) == "I heard: 14"
    assert [request.messages[-1].role for request in fake.requests] == ["user", "tool"]


async def test_the_frameworks_agent_hears_of_a_tool_that_fails(face: Face, fake: FakeEngine) -> None:
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        raise ValueError("the sum is out of stock")

    said = await face.loop("call 7", add)
    assert said.startswith("I heard:")
    result = fake.requests[-1].messages[-1]
    assert result.role == "tool"
    # Agent Framework tells the model no more than that it failed, unless it is told to
    assert "out of stock" in result.content or "Function failed" in result.content


async def test_structured_output(face: Face, fake: FakeEngine) -> None:
    reply = await face.ask([("user", "tell 'knock' 4")], schema=Joke)
    assert Joke.model_validate_json(reply.text) == Joke(setup="knock", marks=4)
    constraint = fake.requests[0].constraint
    assert constraint is not None
    assert constraint.schema is not None
    assert set(constraint.schema["properties"]) == {"setup", "marks"}
    assert constraint.show_schema


async def test_leaving_a_stream_cancels_the_request(face: Face, fake: FakeEngine) -> None:
    fake.pause_s = 0.04
    await face.leave([("user", "w " * 100)])
    assert len(fake.cancelled) == 1


async def test_bad_input_is_refused_and_the_next_call_goes_on(face: Face, fake: FakeEngine) -> None:
    with pytest.raises(ConfigError, match="tool_choice"):
        await face.ask(ASKED, [ADD], ("tool", "subtract"))
    with pytest.raises(ConfigError, match="does not know colour"):
        await face.ask(ASKED, colour="red")
    with pytest.raises(ValueError, match="top_p"):
        await face.ask(ASKED, top_p=3)
    with pytest.raises(PromptError, match="only text"):
        await face.image()
    assert fake.requests == []
    assert (await face.ask(ASKED)).text


def test_wrong_settings_are_refused_when_they_are_given(kind: type[Face], fake: FakeEngine) -> None:
    for wrong in ({"reuse": "sometimes"}, {"temperature": -1.0}, {"max_string": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong)).split("_")[0]):
            _make(kind(**wrong))


def _make(face: Any) -> Any:
    return next(getattr(face, name) for name in ("client", "config", "wrapper") if hasattr(face, name))()


async def test_settings_and_options_reach_the_request(kind: type[Face], fake: FakeEngine) -> None:
    settings = {"temperature": 0.5, "max_tokens": 7, "top_k": 3, "stop": ("x",), "reuse": "off"}
    await kind(kv_namespace="team", kv_agent="judge", **settings).ask(ASKED)
    # In AG2 Classic an entry of `config_list` wins over the call, hence a second client.
    said = {"temperature": 0.25, "max_tokens": 2, "reuse": "exact", "timeout": 1}
    await kind(top_k=3).ask(ASKED, kv_agent="other", kv_namespace="more", **said)
    first, second = fake.requests
    assert first.params == SamplingParams(max_tokens=7, temperature=0.5, top_k=3, stop=("x",))
    assert (first.namespace, first.agent, first.reuse, first.timeout_s) == ("team", "judge", "off", None)
    assert second.params == SamplingParams(max_tokens=2, temperature=0.25, top_k=3)
    assert (second.namespace, second.agent, second.reuse, second.timeout_s) == ("more", "other", "exact", 1)


async def test_names_stay_out_of_the_text(face: Face, fake: FakeEngine) -> None:
    await face.ask(ASKED)
    (request,) = fake.requests
    assert not any("critic" in message.content for message in request.messages)


async def test_a_small_model_can_be_made_to_call(kind: type[Face], fake: FakeEngine) -> None:
    face = kind(prefer_tools=True)
    assert (await face.ask([("user", "7")], [ADD])).arguments == [("add", {"a": 7, "b": 7})]
    turns = [("user", "7"), ("calls", [("id1", "add", {"a": 7, "b": 7})]), ("result", "id1", "add", "14")]
    assert (await face.ask(turns, [ADD])).text == "I heard: 14"


async def test_engine_config(kind: type[Face], monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[EngineConfig] = []

    def engine_for(model: str, config: EngineConfig) -> FakeEngine:
        configs.append(config)
        return FakeEngine(model)

    monkeypatch.setattr("kvcomm_agents.entrypoints.clients.settings.engine_for", engine_for)
    given = EngineConfig(max_context=99, reuse=ReuseConfig(exact_agents=frozenset({"judge"})))
    await kind(engine_config=given, device="cpu").ask(ASKED)
    assert configs
    assert all(config == EngineConfig(max_context=99, reuse=given.reuse, device="cpu") for config in configs)


def test_importing_a_client_loads_no_model_code(kind: type[Face]) -> None:
    import subprocess
    import sys

    code = f"import sys, {kind.package}; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
