"""Conversations as frameworks hand them over come to the engine's messages."""

from __future__ import annotations

from typing import Any

import pytest

from kvcomm_agents.entrypoints.clients.messages import call_turn, content_text, from_openai
from kvcomm_agents.entrypoints.clients.settings import ClientSettings
from kvcomm_agents.errors import ConfigError, PromptError
from kvcomm_agents.request import Constraint, Message, ToolSpec


@pytest.mark.parametrize(
    ("content", "role", "text"),
    [
        ("as it is ", "user", "as it is "),
        (None, "assistant", ""),
        (["a", {"type": "text", "text": " b"}], "user", "a b"),
        ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "so"}], "assistant", "so"),
    ],
)
def test_content_is_its_text(content: Any, role: str, text: str) -> None:
    assert content_text(content, role) == text


@pytest.mark.parametrize("content", [[{"type": "image_url"}], [{"type": "reasoning", "text": "hm"}], [3]])
def test_what_is_no_text_is_refused(content: Any) -> None:
    with pytest.raises(PromptError, match="only text"):
        content_text(content, "user")


def test_arguments_are_an_object_or_what_was_written() -> None:
    arguments = [call_turn("1", "f", given)["function"]["arguments"] for given in ('{"a": 1}', {"a": 1}, "", '{"a": ')]
    assert arguments == [{"a": 1}, {"a": 1}, {}, '{"a": ']


def test_openai_dicts() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = from_openai(
        [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": "go", "name": "critic"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "done", "tool_call_id": "1"},
            {"role": "function", "content": "old", "name": "g"},
        ]
    )
    assert turns == (
        Message("system", "be brief"),
        Message("user", "go", "critic"),
        Message("assistant", "", extra={"tool_calls": [call_turn("1", "f", {})]}),
        Message("tool", "done", extra={"tool_call_id": "1"}),
        Message("tool", "old", "g"),
    )
    with pytest.raises(PromptError, match="without a role"):
        from_openai([{"content": "who am I?"}])


TOOL = ToolSpec("f")


def test_an_option_of_none_leaves_the_setting() -> None:
    settings = ClientSettings("m", temperature=0.5, stop=["x"], kv_agent="a")  # type: ignore[arg-type]
    request = settings.request((), (), {"temperature": None, "stop": None, "kv_agent": None, "reuse": None})
    assert (request.params.temperature, request.params.stop, request.agent) == (0.5, ("x",), "a")
    assert settings.request((), (), {"stop": "y"}).params.stop == ("y",)
    assert ClientSettings("m", stop="x").stop == ("x",)  # type: ignore[arg-type]


def test_who_calls_is_the_callers_word_then_the_frameworks() -> None:
    settings = ClientSettings("m", kv_namespace="mine")
    found = settings.request((), agent="found", namespace="theirs", conversation="c")
    assert (found.agent, found.namespace, found.conversation) == ("found", "theirs", "c")
    told = settings.request((), (), {"kv_agent": "told", "kv_namespace": "said"}, agent="found", namespace="theirs")
    assert (told.agent, told.namespace) == ("told", "said")
    assert (settings.request(()).agent, settings.request(()).namespace) == (None, "mine")


@pytest.mark.parametrize(
    ("settings", "options", "reuse"),
    [
        ({}, {}, "exact"),
        ({"reuse": "corrected"}, {}, "exact"),
        ({"reuse": "off"}, {}, "off"),
        ({}, {"reuse": "corrected"}, "corrected"),
        ({"exact_selectors": False}, {}, None),
    ],
)
def test_selectors_are_exact_unless_told_otherwise(settings: Any, options: Any, reuse: Any) -> None:
    assert ClientSettings("m", **settings).request((), (), options, selects=True).reuse == reuse


def test_small_models_call_first_and_then_speak() -> None:
    settings = ClientSettings("m", prefer_tools=True)
    asked, answered = (Message("user", "go"),), (Message("user", "go"), Message("tool", "done"))
    assert settings.request(asked, [TOOL]).constraint == Constraint(calls="required", parallel=False, show_schema=False)
    assert settings.request(answered, [TOOL]).constraint == Constraint(calls="none", parallel=False, show_schema=False)
    chosen = settings.request(asked, [TOOL], {"tool_choice": "auto"}).constraint
    assert chosen == Constraint(calls="auto", parallel=False, show_schema=False)
    assert settings.request(asked).constraint is None, "nothing to call"


def test_a_call_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match="no tools"):
        ClientSettings("m").request((), (), {"tool_choice": "required"})
    with pytest.raises(ConfigError, match="does not know colour"):
        ClientSettings("m").request((), (), {"colour": "red"})
