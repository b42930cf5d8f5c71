"""LangChain messages become engine messages, and nothing is added to or lost from their text."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from kvcomm_agents.errors import PromptError
from kvcomm_agents.request import Message
from langchain_kvcomm.messages import to_messages

CALL = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (SystemMessage("s"), Message("system", "s")),
        (HumanMessage("h"), Message("user", "h")),
        (HumanMessageChunk(content="h"), Message("user", "h")),
        (AIMessage("a"), Message("assistant", "a")),
        (ToolMessage("4", tool_call_id="c1"), Message("tool", "4", extra={"tool_call_id": "c1"})),
        (FunctionMessage(name="add", content="4"), Message("tool", "4", name="add")),
        (ChatMessage(role="user", content="h"), Message("user", "h")),
        (ChatMessage(role="developer", content="s"), Message("system", "s")),
    ],
)
def test_roles(message: BaseMessage, expected: Message) -> None:
    assert to_messages([message]) == (expected,)


def test_name_stays_out_of_the_text() -> None:
    assert to_messages([AIMessage("a", name="coder")]) == (Message("assistant", "a", name="coder"),)


def test_tool_calls_go_where_chat_templates_look() -> None:
    (message,) = to_messages([AIMessage("", tool_calls=[CALL])])
    assert message.extra == {
        "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}]
    }


def test_text_blocks_are_joined_as_they_are() -> None:
    blocks: list[Any] = ["a\n", {"type": "text", "text": " b"}, {"type": "text", "text": "c"}]
    assert to_messages([HumanMessage(blocks)])[0].content == "a\n bc"
    assert to_messages([HumanMessage([])])[0].content == ""


def test_blocks_of_a_tool_call_are_silent_in_an_assistant_turn_only() -> None:
    block: Any = {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}
    text: Any = {"type": "text", "text": "ok"}
    assert to_messages([AIMessage([text, block], tool_calls=[CALL])])[0].content == "ok"
    with pytest.raises(PromptError, match="tool_use"):
        to_messages([HumanMessage([block])])


@pytest.mark.parametrize(
    "block",
    [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "audio", "base64": "eA=="}, {"no": "type"}],
)
def test_what_is_not_text_is_refused(block: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="only text"):
        to_messages([HumanMessage([block])])


def test_a_message_that_says_nothing_is_refused() -> None:
    with pytest.raises(PromptError, match="RemoveMessage"):
        to_messages([RemoveMessage(id="1")])


SPANS = {"kvcomm": {"prompt_tokens": 3, "spans": ["a1", "b2"]}}


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("a", response_metadata=SPANS),
        AIMessage("edited", response_metadata=SPANS, name="writer"),
        HumanMessage("a", response_metadata=SPANS),
        HumanMessage("a", additional_kwargs=SPANS),
        ToolMessage("a", tool_call_id="c1", response_metadata=SPANS),
    ],
)
def test_tags_of_spans_come_back_in_any_role(message: BaseMessage) -> None:
    assert to_messages([message])[0].spans == ("a1", "b2")


@pytest.mark.parametrize("report", [None, "x", {}, {"spans": None}, {"spans": "a1"}, {"spans": [1, {}]}])
def test_metadata_of_another_form_is_ignored(report: Any) -> None:
    assert to_messages([AIMessage("a", response_metadata={"kvcomm": report})])[0].spans == ()
