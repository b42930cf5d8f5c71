"""The contract on the default model's weights: every client says what the engine says."""

from __future__ import annotations

import pytest
from faces import ADD, Face, Joke

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.engine import shared_engine
from kvcomm_agents.models.loading import DEFAULT_MODEL
from kvcomm_agents.request import Message, Request, SamplingParams

pytestmark = pytest.mark.weights

EXACT = EngineConfig(reuse=ReuseConfig(mode="exact"))  # learns nothing, to be quick
ASKED = [("system", "You answer in one short sentence."), ("user", "Why is the sky blue?")]


async def test_every_way_says_the_same(kind: type[Face]) -> None:
    messages = tuple(Message(role, text) for role, text in ASKED)
    request = Request(messages, params=SamplingParams(max_tokens=6), reuse="off", namespace="contract")
    dense = shared_engine(DEFAULT_MODEL, EXACT).generate(request)
    face = kind(DEFAULT_MODEL, temperature=0.0, max_tokens=6, kv_namespace="contract", engine_config=EXACT)
    whole, (pieces, streamed) = await face.ask(ASKED), await face.stream(ASKED)
    assert whole.text == streamed.text == "".join(pieces) == dense.text
    assert whole.prompt == streamed.prompt == dense.report.prompt_tokens
    if streamed.cached is not None:
        assert streamed.cached == dense.report.prompt_tokens - 1, "all but the token that must be computed"


async def test_calls_and_objects_follow_their_schemas(kind: type[Face]) -> None:
    pytest.importorskip("llguidance", reason="needs the tools extra")
    face = kind(DEFAULT_MODEL, temperature=0.0, engine_config=EXACT, max_string=8)
    called = await face.ask([("user", "What is 2 plus 5?")], [ADD], "required", parallel_tool_calls=False)
    ((name, arguments),) = called.arguments
    assert (name, set(arguments), called.reason) == ("add", {"a", "b"}, "tool_calls")
    assert all(isinstance(value, int) for value in arguments.values())
    told = await face.ask([("user", "Tell a joke about a cat and give it marks.")], schema=Joke)
    assert Joke.model_validate_json(told.text)
