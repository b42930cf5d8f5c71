"""Tool formats are read off templates, calls out of text, however it is split."""

from __future__ import annotations

import json

import pytest
from conftest import TEMPLATE, TOOL_TEMPLATE, TOOLS, TURNS, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm_agents.errors import ConfigError
from kvcomm_agents.request import Constraint, Message, ToolSpec
from kvcomm_agents.text.prompt import PromptRenderer
from kvcomm_agents.text.tool_calls import PLAIN, CallFormat, CallParser, parse

ADD = ToolSpec("add", "Adds two numbers.", {"type": "object", "properties": {"a": {"type": "integer"}}})
LISTED = TOOLS + TURNS.replace(
    "CALLS",
    "[TOOL_CALLS] [{% for c in m.tool_calls %}{% if not loop.first %}, {% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{% endfor %}]',
)
BARE = TOOLS + TURNS.replace(
    "CALLS",
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}',
)
THINKING = TOOL_TEMPLATE.replace(
    "{% if m.tool_calls %}",
    "{% if m.role == 'assistant' %}<think>{{ '\\n\\n' }}</think>{% endif %}{% if m.tool_calls %}",
)
REVERSED = TOOL_TEMPLATE.replace('{"name": "{{ c.function.name }}", ', "{").replace(
    "tojson }}}", 'tojson }}, "name": "{{ c.function.name }}"}'
)
XML = TOOLS + TURNS.replace("CALLS", "{% for c in m.tool_calls %}<function={{ c.function.name }}>{% endfor %}")


def renderer(template: str) -> PromptRenderer:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return PromptRenderer(tokenizer)


@pytest.mark.parametrize(
    ("template", "want"),
    [
        (TEMPLATE, PLAIN),
        (TOOL_TEMPLATE, CallFormat("<tool_call>\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n", native=True)),
        (LISTED, CallFormat("[TOOL_CALLS] [", "]", ", ", native=True)),
        (BARE, CallFormat("", "", None, "parameters", native=True)),
        (THINKING, CallFormat("<tool_call>\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n", native=True)),
        (REVERSED, PLAIN),
        (XML, PLAIN),
        ("{{ raise_exception('no') }}", PLAIN),
    ],
)
def test_the_format_is_read_off_the_template(template: str, want: CallFormat) -> None:
    assert renderer(template).format == want


def history() -> list[Message]:
    call = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}
    return [
        Message("system", "You add."),
        Message("user", "one?"),
        Message("assistant", "", extra={"tool_calls": [call]}),
        Message("tool", "It is 1.", name="add", extra={"tool_call_id": "c1"}),
    ]


def test_a_template_without_tools_is_told_in_text() -> None:
    plain = renderer(TEMPLATE)
    text = plain.text(history(), [ADD])
    assert "You add.\n\nYou can call tools." in text
    assert json.dumps({"name": "add", "description": ADD.description, "parameters": ADD.parameters}) in text
    assert '<|start|>assistant\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|end|>' in text
    assert "<|start|>user\n<tool_response>It is 1.</tool_response><|end|>" in text
    assert plain.text([Message("user", "x")], [ADD]).startswith("<|start|>system\nYou can call tools.")


def test_what_is_not_ascii_is_not_escaped() -> None:
    größe = ToolSpec("größe", "Misst die Größe.")
    text = renderer(TEMPLATE).text([Message("user", "x")], [größe], Constraint(schema={"title": "長さ"}))
    assert '"größe", "description": "Misst die Größe."' in text
    assert '{"title": "長さ"}' in text


def test_a_template_with_tools_says_it_its_own_way() -> None:
    text = renderer(TOOL_TEMPLATE).text(history(), [ADD])
    assert "You can call tools." not in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|end|>' in text
    assert "<|start|>tool\nIt is 1.<|end|>" in text


@pytest.mark.parametrize("template", [TEMPLATE, TOOL_TEMPLATE])
def test_contents_are_still_found(template: str) -> None:
    made = renderer(template)
    found = made.segments(history(), [ADD], Constraint(schema={"type": "object"}))
    said = {part.message: made.tokenizer.decode(found.ids[part.start : part.stop]) for part in found.parts}
    assert said == {0: "You add.", 1: "one?", 3: "It is 1."}


def test_the_schema_is_shown_unless_it_is_not_to_be() -> None:
    schema = {"type": "object", "properties": {"joke": {"description": "a good one"}}}
    messages = [Message("user", "x")]
    assert "a good one" in renderer(TEMPLATE).text(messages, (), Constraint(schema=schema))
    assert "a good one" not in renderer(TEMPLATE).text(messages, (), Constraint(schema=schema, show_schema=False))


ARGUMENTS = st.dictionaries(st.text(max_size=4), st.text(max_size=6) | st.integers() | st.lists(st.text(max_size=3)))


@settings(max_examples=60, deadline=None)
@given(
    text=st.text("abc <tol_", max_size=20),
    calls=st.lists(st.tuples(st.sampled_from(["add", 'q"x']), ARGUMENTS), max_size=3),
    style=st.sampled_from([PLAIN, CallFormat("[T] [", "]", ", "), CallFormat("", "", "; ", "parameters")]),
    size=st.integers(1, 9),
)
def test_calls_are_found_however_the_text_is_split(
    text: str, calls: list[tuple[str, dict[str, object]]], style: CallFormat, size: int
) -> None:
    written = [json.dumps({"name": name, style.arguments: arguments}) for name, arguments in calls]
    answer = text + (style.open + (style.between or "").join(written) + style.close if calls else "")
    parser, said, pieces = CallParser(style), "", []
    for at in range(0, len(answer), size):
        more, found = parser.push(answer[at : at + size])
        said += more
        pieces += found
    said += parser.flush()[0]
    assert said == text == parser.parsed.text
    assert [(call.name, call.decoded()) for call in parser.parsed.calls] == calls
    assert [piece.index for piece in pieces if piece.name is not None] == list(range(len(calls)))
    for index, call in enumerate(parser.parsed.calls):
        mine = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.arguments for piece in mine) == call.arguments
        assert [piece.id for piece in mine] == [call.id] + [None] * (len(mine) - 1)


def test_a_call_that_was_cut_off_is_not_complete() -> None:
    (call,) = parse('<tool_call>{"name": "add", "arguments": {"a": 1', PLAIN).calls
    assert (call.arguments, call.complete, call.decoded()) == ('{"a": 1', False, None)
    assert parse('<tool_call>{"name": "ad', PLAIN).calls == []


def test_wrong_values_say_so() -> None:
    with pytest.raises(ConfigError, match="name"):
        ToolSpec("")
    with pytest.raises(ConfigError, match="sometimes"):
        Constraint(calls="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_string=0"):
        Constraint(max_string=0)
