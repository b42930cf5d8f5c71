"""ChatKVComm over a fake engine: one answer, whichever way it is asked for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_engine import FakeEngine
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable

from kvcomm_agents._version import __version__
from kvcomm_agents.config import EngineConfig
from kvcomm_agents.errors import ConfigError, PromptError
from kvcomm_agents.request import SamplingParams
from langchain_kvcomm import ChatKVComm


@pytest.fixture
def llm(engine: FakeEngine) -> ChatKVComm:
    return ChatKVComm(model="fake")


async def _every_way(llm: Runnable[Any, Any], prompt: Any, **kwargs: Any) -> list[AIMessage]:
    """One answer by each face of the model."""
    chunks = list(llm.stream(prompt, **kwargs))
    achunks = [chunk async for chunk in llm.astream(prompt, **kwargs)]
    return [
        llm.invoke(prompt, **kwargs),
        await llm.ainvoke(prompt, **kwargs),
        llm.batch([prompt], **kwargs)[0],
        sum(chunks[1:], chunks[0]),
        sum(achunks[1:], achunks[0]),
    ]


async def test_every_way_gives_the_same_answer(llm: ChatKVComm) -> None:
    for reply in await _every_way(llm, "one two three"):
        assert reply.content == "I heard: one two three"
        assert reply.response_metadata["model_name"] == "fake"
        assert reply.response_metadata["model_provider"] == "kvcomm"
        assert reply.response_metadata["finish_reason"] == "stop"
        report = reply.response_metadata["kvcomm"]
        assert report["prompt_tokens"] == 5
        assert reply.usage_metadata is not None
        assert reply.usage_metadata["input_tokens"] == 5
        assert reply.usage_metadata["output_tokens"] == 5
        assert reply.usage_metadata["total_tokens"] == 10
        placed = report["placed_exact_tokens"] + report["placed_corrected_tokens"]
        assert reply.usage_metadata["input_token_details"]["cache_read"] == placed


def test_cache_read_counts_placed_tokens(llm: ChatKVComm) -> None:
    system = SystemMessage("you are a tester")
    replies = [llm.invoke([system, HumanMessage(text)]) for text in ("first", "second")]
    reads = [reply.usage_metadata["input_token_details"]["cache_read"] for reply in replies]
    assert reads == [0, 7]


def test_only_the_last_chunk_counts(llm: ChatKVComm) -> None:
    chunks = list(llm.stream("one two"))
    assert [chunk.content for chunk in chunks] == ["I", " heard:", " one", " two", ""]
    assert [chunk.usage_metadata is not None for chunk in chunks] == [False] * 4 + [True]
    assert [chunk.chunk_position for chunk in chunks] == [None] * 4 + ["last"]


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)


async def test_each_token_is_called_back_once(llm: ChatKVComm) -> None:
    want = ["I", " heard:", " one", ""]
    sync_, async_, streaming = Tokens(), Tokens(), Tokens()
    list(llm.stream("one", config={"callbacks": [sync_]}))
    [chunk async for chunk in llm.astream("one", config={"callbacks": [async_]})]
    ChatKVComm(model="fake", streaming=True).invoke("one", config={"callbacks": [streaming]})
    assert sync_.tokens == async_.tokens == streaming.tokens == want


async def test_stop(llm: ChatKVComm) -> None:
    for reply in await _every_way(llm, "a b c", stop=["b"]):
        assert reply.content == "I heard: a "
    fixed = ChatKVComm(model="fake", stop=["c"])
    assert fixed.invoke("a b c").content == "I heard: a b "
    assert fixed.invoke("a b c", stop=["b"]).content == "I heard: a ", "the call's own replace them"
    assert fixed.invoke("a b c", stop=[]).content == "I heard: a b c"


def test_sampling_comes_from_the_constructor_then_from_the_call(engine: FakeEngine) -> None:
    llm = ChatKVComm(model="fake", temperature=0.5, max_tokens=7, top_k=3, seed=1, timeout=9, reuse="off")
    llm.invoke("x")
    llm.bind(temperature=0, max_tokens=2).invoke("x", top_p=0.9, seed=None, reuse="exact", timeout=1)
    first, second = engine.requests
    assert first.params == SamplingParams(max_tokens=7, temperature=0.5, top_k=3, seed=1)
    assert (first.timeout_s, first.reuse, first.namespace) == (9, "off", "default")
    assert second.params == SamplingParams(max_tokens=2, temperature=0.0, top_p=0.9, top_k=3, seed=1)
    assert (second.timeout_s, second.reuse) == (1, "exact")
    assert llm.invoke("a b c d e f g h").response_metadata["finish_reason"] == "length"


async def test_model_override(engines: dict[str, FakeEngine], llm: ChatKVComm) -> None:
    for reply in await _every_way(llm, "x", model="other"):
        assert reply.response_metadata["model_name"] == "other"
    assert len(engines["other"].requests) == 5
    assert llm._get_ls_params(model="other", temperature=1.0) == {
        "ls_provider": "kvcomm",
        "ls_model_type": "chat",
        "ls_model_name": "other",
        "ls_temperature": 1.0,
    }


def test_versions_are_told_to_tracers(llm: ChatKVComm) -> None:
    if not hasattr(llm, "_add_version"):
        pytest.skip("langchain-core 1.4 has no versions")
    assert llm.metadata is not None
    assert llm.metadata["lc_versions"]["kvcomm-agents"] == __version__


def test_namespace(engine: FakeEngine) -> None:
    llm = ChatKVComm(model="fake", kv_namespace="tenant-a")
    llm.invoke("x")
    reply = llm.bind(kv_namespace="tenant-b").invoke("x")
    assert [request.namespace for request in engine.requests] == ["tenant-a", "tenant-b"]
    assert reply.usage_metadata["input_token_details"]["cache_read"] == 0


def test_identifying_params_hold_what_changes_the_answer() -> None:
    llm = ChatKVComm(model="fake", temperature=0, stop=["x"], kv_namespace="a")
    assert llm._identifying_params == {"model": "fake", "temperature": 0, "stop": ["x"], "kv_namespace": "a"}


def test_wrong_settings_fail_at_once(llm: ChatKVComm) -> None:
    for wrong in (
        {"temperature": -1},
        {"reuse": "some"},
        {"dtype": "int3"},
        {"temprature": 1},
        {"stop": [""]},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ChatKVComm(model="fake", **wrong)
    with pytest.raises(ConfigError, match="top_p=2"):
        llm.invoke("x", top_p=2)
    with pytest.raises(ConfigError, match=r"does not know n;.*max_tokens"):
        llm.invoke("x", n=2)
    with pytest.raises(ConfigError, match="sometimes"):
        llm.invoke("x", reuse="sometimes")
    with pytest.raises(PromptError, match="image_url"):
        llm.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])


def test_engine_config_is_env_then_given_then_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EngineConfig] = []
    monkeypatch.setattr(
        "kvcomm_agents.entrypoints.clients.settings.engine_for",
        lambda model, config: seen.append(config) or FakeEngine(model),
    )
    monkeypatch.setenv("KVCOMM_MAX_CONTEXT", "77")
    ChatKVComm(model="fake").invoke("x")
    ChatKVComm(model="fake", engine_config=EngineConfig(max_context=99), device="cpu", dtype="float32").invoke("x")
    assert seen == [EngineConfig(max_context=77), EngineConfig(max_context=99, device="cpu", dtype="float32")]


def test_tokens_are_the_models_own(llm: ChatKVComm) -> None:
    assert llm.get_token_ids("a b") == [97, 98]
    assert llm.get_num_tokens_from_messages([HumanMessage("a b")]) == 4
    tool = {"title": "add", "description": "Adds two numbers.", "type": "object", "properties": {}}
    assert llm.get_num_tokens_from_messages([HumanMessage("a b")], tools=[tool]) > 7


def test_closing_the_generator_cancels(engine: FakeEngine, llm: ChatKVComm) -> None:
    stream = llm.stream("one two three")
    assert next(stream).content == "I"
    assert engine.cancelled == []
    stream.close()
    assert engine.cancelled == engine.requests


async def test_closing_the_async_generator_cancels(engine: FakeEngine, llm: ChatKVComm) -> None:
    stream = llm._astream([HumanMessage("one two three")])
    assert (await anext(stream)).message.content == "I"
    await stream.aclose()
    assert engine.cancelled == engine.requests


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancelling_the_task_cancels(engine: FakeEngine, streaming: bool) -> None:
    engine.pause_s = 60
    task = asyncio.create_task(ChatKVComm(model="fake", streaming=streaming).ainvoke("one two three"))
    while not engine.requests:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.cancelled == engine.requests


def test_a_finished_stream_cancels_nothing(engine: FakeEngine, llm: ChatKVComm) -> None:
    list(llm.stream("one"))
    assert engine.cancelled == []


def test_many_threads(engine: FakeEngine, llm: ChatKVComm) -> None:
    texts = [f"text {i}" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda text: llm.invoke(text).content, texts))
    assert replies == [f"I heard: {text}" for text in texts]
    assert [reply.content for reply in llm.batch(texts)] == replies


def test_a_bad_request_in_a_batch_fails_alone(llm: ChatKVComm) -> None:
    bad = [HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])]
    prompts = ["a", [HumanMessage("b")], [SystemMessage("s"), HumanMessage("c")], bad, "e", "f", "g", "h"]
    replies = llm.batch(prompts, return_exceptions=True)
    assert [getattr(reply, "content", None) for reply in replies] == [
        f"I heard: {word}" if word != "d" else None for word in "abcdefgh"
    ]
    assert isinstance(replies[3], PromptError)


async def test_prompts_keep_their_text(engine: FakeEngine, llm: ChatKVComm) -> None:
    text = "  two  spaces\n\nand a line "
    await _every_way(llm, [SystemMessage("s"), HumanMessage(text, name="planner")])
    assert {tuple((m.role, m.content, m.name) for m in request.messages) for request in engine.requests} == {
        (("system", "s", None), ("user", text, "planner"))
    }


def test_merged_chunks_are_one_message(llm: ChatKVComm) -> None:
    chunks = list(llm.stream("one"))
    whole = sum(chunks[1:], chunks[0])
    assert isinstance(whole, AIMessageChunk)
    assert whole.response_metadata["kvcomm"] == {**whole.response_metadata["kvcomm"], "prompt_tokens": 3}
    assert whole.id is not None
    assert whole.id.startswith("lc_run-")


def test_building_one_brings_no_torch() -> None:
    code = "import sys, langchain_kvcomm as lc; lc.ChatKVComm(model='x'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_langchain_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['langchain_core'] = None; import langchain_kvcomm"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert 'pip install "kvcomm-agents[langgraph]"' in run.stderr
