"""Constrained answers are well-formed with any model, and forced tokens change nothing but the speed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import TOOL_TEMPLATE, byte_tokenizer

from kvcomm_agents.backends.transformers.constraint import Matcher
from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import ConstraintError, MissingExtraError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.request import Completion, Constraint, Message, Request, SamplingParams, ToolSpec
from kvcomm_agents.text.tool_calls import PLAIN, CallFormat, parse

pytest.importorskip("llguidance", reason="needs the tools extra")

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}, "why": {"type": "string", "maxLength": 5}},
    "required": ["x", "why"],
}
TOOLS = (ToolSpec("mark", "Marks a point.", POINT), ToolSpec("stop", "Stops."))
TOKENIZER = byte_tokenizer()


def matcher(constraint: Constraint, format: CallFormat = PLAIN, tokenizer: Any = TOKENIZER) -> Matcher:
    return Matcher(constraint, TOOLS, format, tokenizer, 300, {257})


def allows(constraint: Constraint, text: str, format: CallFormat = PLAIN, tokenizer: Any = TOKENIZER) -> bool:
    """Whether a whole answer is allowed, token by token."""
    one = matcher(constraint, format, tokenizer)
    for token in [*tokenizer(text)["input_ids"], 257]:
        if one.done:
            return token == 257
        if one.mask(torch.zeros(300))[token] != 0:
            return False
        one.accept(token)
    return True


STOP = '{"name": "stop", "arguments": {}}'
MARK = '{"name": "mark", "arguments": {"x": 3, "why": "so"}}'


@pytest.mark.parametrize(
    ("text", "auto", "required", "none"),
    [
        ("just text", True, False, True),
        (f"<tool_call>{STOP}</tool_call>", True, True, False),
        (f"I will.\n<tool_call>{MARK}</tool_call>\n<tool_call>{STOP}</tool_call>", True, False, False),
        (f"<tool_call>{MARK}</tool_call>\n<tool_call>{STOP}</tool_call>", True, True, False),
        (f"<tool_call>{STOP}", False, False, False),
        (f"<tool_call>{STOP.replace('stop', 'halt')}</tool_call>", False, False, False),
        ('<tool_call>{"name": "stop", "arguments": {"y": 1}}</tool_call>', False, False, False),
        (f"<tool_call>{MARK.replace('so', 'because')}</tool_call>", False, False, False),
    ],
)
def test_calls(text: str, auto: bool, required: bool, none: bool) -> None:
    assert allows(Constraint(calls="auto"), text) is auto
    assert allows(Constraint(calls="required"), text) is required
    assert allows(Constraint(calls="none"), text) is none


def test_one_tool_one_call() -> None:
    both = f"<tool_call>{MARK}</tool_call>\n<tool_call>{STOP}</tool_call>"
    assert not allows(Constraint(calls="required", parallel=False), both)
    assert not allows(Constraint(calls="required", tool="stop"), f"<tool_call>{MARK}</tool_call>")
    assert allows(Constraint(calls="required", tool="stop"), f"<tool_call>{STOP}</tool_call>")
    with pytest.raises(ConstraintError, match="'halt'.*mark, stop"):
        matcher(Constraint(calls="required", tool="halt"))
    with pytest.raises(ConstraintError, match="no tools"):
        Matcher(Constraint(calls="required"), (), PLAIN, TOKENIZER, 300, {257})


def test_a_name_that_is_not_ascii() -> None:
    one = Matcher(Constraint(calls="required"), (ToolSpec("größe"),), PLAIN, TOKENIZER, 300, {257})
    assert TOKENIZER.decode(one.forced()).startswith('<tool_call>{"name": "größe", "arguments": {')


def test_a_schema_and_tools_allow_either() -> None:
    either = Constraint(schema=POINT, calls="auto")
    assert allows(either, '{"x": 1, "why": ""}')
    assert allows(either, f"<tool_call>{STOP}</tool_call>")
    assert not allows(either, "text")
    assert not allows(Constraint(schema=POINT), f"<tool_call>{STOP}</tool_call>")


@pytest.mark.parametrize("calls", ["auto", "required"])
def test_other_formats(calls: Any) -> None:
    listed = CallFormat("[CALLS] [", "]", ", ")
    bare = CallFormat("", "", "; ", "parameters")
    assert allows(Constraint(calls=calls), f"[CALLS] [{MARK}, {STOP}]", listed)
    marked, stopped = (call.replace("arguments", "parameters") for call in (MARK, STOP))
    assert allows(Constraint(calls=calls), f"{marked}; {stopped}", bare)
    assert not allows(Constraint(calls=calls), stopped.replace("stop", "halt"), bare)


def test_a_mark_that_is_a_special_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "[CALLS]"]})
    listed = CallFormat("[CALLS] [", "]", ", ")
    for calls in ("auto", "required"):
        assert allows(Constraint(calls=calls), f"[CALLS] [{STOP}]", listed, tokenizer)  # type: ignore[arg-type]
    assert allows(Constraint(calls="auto"), "text", listed, tokenizer)
    assert not allows(Constraint(calls="none"), f"[CALLS] [{STOP}]", listed, tokenizer)


@pytest.fixture
def auto_engine(tiny: Callable[[str], LoadedModel]) -> Iterator[Engine]:
    made = Engine(tiny("llama"), EngineConfig(reuse=ReuseConfig(mode="corrected", min_placed=12)))
    yield made
    made.close()


def ask(text: str, constraint: Constraint, tools: tuple[ToolSpec, ...] = (), **params: Any) -> Request:
    sampling = SamplingParams(**{"max_tokens": 150, **params})
    return Request((Message("user", text),), sampling, "a", tools=tools, constraint=constraint)


def test_a_random_model_writes_valid_json(auto_engine: Engine) -> None:
    for seed in range(3):
        for text in ("one", "two two two two two two", "three"):
            done = auto_engine.generate(ask(text, Constraint(POINT), temperature=1.0, seed=seed))
            value = json.loads(done.text)
            assert set(value) == {"x", "why"}
            assert 0 <= value["x"] <= 9
            assert done.finish_reason == "stop"
        auto_engine.settle(30)
    assert any(report.placed_tokens for report in auto_engine.reports)


@pytest.mark.parametrize("reuse", ["exact", "corrected", "off"])
def test_a_random_model_calls_known_tools_only(tiny: Callable[[str], LoadedModel], reuse: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    engine = Engine(
        LoadedModel.of(tiny("llama").model, tokenizer), EngineConfig(reuse=ReuseConfig(mode=reuse, min_placed=12))
    )
    for seed in range(3):
        request = ask("call", Constraint(calls="required"), TOOLS, temperature=1.0, seed=seed, max_tokens=100)
        done = engine.generate(request)
        calls = parse(done.text, engine.call_format).calls
        assert calls
        assert all(call.name in ("mark", "stop") for call in calls)
        assert all(call.complete for call in calls) or done.finish_reason == "length"
    engine.close()


def test_streamed_text_is_the_whole(auto_engine: Engine) -> None:
    *chunks, done = auto_engine.stream(ask("one", Constraint(POINT)))
    assert isinstance(done, Completion)
    assert "".join(chunk.text for chunk in chunks) == done.text
    assert done.report.output_tokens == len(done.token_ids)


def test_forced_tokens_cost_no_step_and_change_nothing(auto_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ask("one", Constraint(POINT))
    fast = auto_engine.generate(request)
    inference = auto_engine.inspect(lambda core: core)
    steps = []
    forward = inference.backend.runner.forward
    monkeypatch.setattr(inference.backend.runner, "forward", lambda *args: steps.append(args) or forward(*args))
    assert auto_engine.generate(request).token_ids == fast.token_ids
    assert len(steps) < len(fast.token_ids) / 2
    monkeypatch.setattr(Matcher, "forced", lambda self: [])
    assert auto_engine.generate(request).token_ids == fast.token_ids


def test_an_answer_cut_off_within_forced_tokens(auto_engine: Engine) -> None:
    done = auto_engine.generate(ask("one", Constraint(POINT), max_tokens=3))
    assert (done.text, done.finish_reason, len(done.token_ids)) == ('{"x', "length", 3)


def test_several_tokens_at_once_are_as_one_by_one(tiny: Callable[[str], LoadedModel]) -> None:
    runner = Runner(tiny("llama").model)
    prompt, more = list(range(40, 60)), list(range(100, 109))
    one, many = runner.open(64), runner.open(64)
    for cache in (one, many):
        runner.prefill(cache, prompt)
    singly = torch.stack([runner.decode(one, token) for token in more])
    at_once = runner.extend(many, more, keep=len(more))
    torch.testing.assert_close(at_once, singly, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(many.keys[:, :, : many.length], one.keys[:, :, : one.length], atol=1e-5, rtol=1e-4)
    assert one.length == many.length == 29


def test_a_schema_that_makes_no_grammar_fails_alone(auto_engine: Engine) -> None:
    with pytest.raises(ConstraintError, match="cannot be followed"):
        auto_engine.generate(ask("one", Constraint({"type": "no such type"})))
    assert auto_engine.generate(ask("one", Constraint(POINT))).text


def test_without_llguidance_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "kvcomm-agents[tools]"')):
        matcher(Constraint(calls="auto"))
