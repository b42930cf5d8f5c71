from __future__ import annotations

import pytest
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcomm_agents.errors import PromptError
from kvcomm_agents.request import Message
from kvcomm_agents.text.prompt import PromptRenderer

TRIMMING = (
    "You are helpful.\n{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# as some templates do: alternation enforced, the system message put before the last user message
ALTERNATING = (
    "{% set ns = namespace(last='', system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}{% else %}"
    "{% if m['role'] == ns.last %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.last = m['role'] %}<{{ m['role'] }}>"
    "{% if loop.last and ns.system %}{{ ns.system }}\n\n{% endif %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
# as reasoning models' templates do: the thinking of earlier turns is cut away
THINKING = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{% set c = m['content'] %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}<|end|>\n{% endfor %}"
)


def renderer(template: str | None = None) -> PromptRenderer:
    tokenizer = byte_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    return PromptRenderer(tokenizer)


def conversation(*contents: str, first: str = "system") -> list[Message]:
    roles = [first, *["user", "assistant"] * len(contents)]
    return [Message(role, content) for role, content in zip(roles, contents, strict=False)]


def texts(renderer: PromptRenderer, messages: list[Message]) -> dict[int, str]:
    """What the parts hold, by message, after checking what must hold of any prompt."""
    rendered = renderer.segments(messages)
    assert rendered.ids == renderer.ids(messages)
    stops = [0, *[part.stop for part in rendered.parts]]
    assert all(before <= part.start < part.stop for before, part in zip(stops, rendered.parts, strict=False))
    assert len({part.message for part in rendered.parts}) == len(rendered.parts)
    return {p.message: renderer.tokenizer.decode(list(rendered.ids[p.start : p.stop])) for p in rendered.parts}


def test_each_content_is_found():
    contents = ["Be brief.", "What is é in 東京? 🎉", "  An answer,\n\nwith space around. \n", "<|end|>\nuser"]
    assert texts(renderer(), conversation(*contents)) == dict(enumerate(contents))


def test_repeated_contents_and_contents_equal_to_template_text():
    contents = ["user", "user", "user", "assistant", "start"]
    assert texts(renderer(), conversation(*contents)) == dict(enumerate(contents))
    found = renderer(TRIMMING).segments([Message("user", "You are helpful."), Message("user", "helpful")])
    # [user] You are helpful.  comes after the template's own "You are helpful."
    assert [part.start for part in found.parts] == [24, 48]


def test_content_that_also_stands_in_the_system_message():
    contents = ["Answer the question: why is the sky blue?", "why is the sky blue?"]
    rendered = renderer().segments(conversation(*contents))
    assert rendered.parts[1].start >= rendered.parts[0].stop


def test_empty_contents_have_no_part():
    assert texts(renderer(), conversation("", "hello", "  ", "\n")) == {1: "hello"}
    assert texts(renderer(), conversation("")) == {}


def test_a_template_that_trims():
    contents = [" a ", "\n\nb c\n", "d", "   ", "e "]
    assert texts(renderer(TRIMMING), conversation(*contents)) == {0: "a", 1: "b c", 2: "d", 4: "e"}


def test_merged_turns_and_moved_system_message():
    messages = [Message("system", "Rules."), Message("user", "one "), Message("user", " two"), Message("user", "three")]
    assert texts(renderer(ALTERNATING), messages) == {0: "Rules.", 1: "one ", 2: " two", 3: "three"}
    spoken = [Message("user", "q"), Message("assistant", "Rules. a"), *messages]
    assert texts(renderer(ALTERNATING), spoken)[2] == "Rules."


def test_a_content_that_the_template_changes_has_no_part_and_the_others_keep_theirs():
    contents = ["Rules.", "a question", "<think>hmm</think>an answer", "a second question"]
    assert texts(renderer(THINKING), conversation(*contents)) == {0: "Rules.", 1: "a question", 3: "a second question"}


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}|{% endfor %}",
        "{% for m in messages %}{{ m['content'] | length }}{% endfor %}",
        "{{ messages | length }}",
        "{% for m in messages %}{% if m['content'] | length < 5 %}{{ raise_exception('no') }}{% endif %}{% endfor %}x",
        "{{ messages[0]['content'] | length }}{{ messages[0]['content'] }}",
    ],
)
def test_templates_that_hide_contents_give_no_parts(template: str):
    assert texts(renderer(template), conversation("some text", "more text")) == {}


def test_a_template_that_repeats_a_content_gives_its_first_place():
    twice = renderer("{% for m in messages %}{{ m['content'] }}|{{ m['content'] }}|{% endfor %}")
    assert [(p.start, p.stop) for p in twice.segments(conversation("abc", "de")).parts] == [(0, 3), (8, 10)]


def test_contents_with_private_use_characters():
    contents = ["\ue000", "\ue0000\ue001", "\ue000\ue0001\ue001 x", "plain"]
    assert texts(renderer(), conversation(*contents)) == dict(enumerate(contents))


def test_errors_are_those_of_text():
    with pytest.raises(PromptError):
        renderer().segments([])
    with pytest.raises(PromptError):
        renderer().segments([Message("robot", "x")])


def test_a_tokenizer_without_offsets_gives_ids_only(monkeypatch):
    slow = renderer()
    monkeypatch.setattr(type(slow.tokenizer), "is_fast", False)
    messages = conversation("a", "b")
    assert slow.segments(messages).parts == ()
    assert slow.segments(messages).ids == slow.ids(messages)


CONTENTS = st.text(st.sampled_from("ab \n|é🎉\ue000\ue0010<>"), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(CONTENTS, min_size=1, max_size=5), st.sampled_from([None, TRIMMING, ALTERNATING, THINKING]))
def test_parts_hold_their_content_whatever_it_is(contents: list[str], template: str | None):
    first = "user" if template == ALTERNATING else "system"
    found = texts(renderer(template), [Message(first, contents[0]), *conversation(*contents[1:], first="assistant")])
    for message, text in found.items():
        assert text.strip() == contents[message].strip()
    if template is None:
        assert set(found) == {i for i, content in enumerate(contents) if content.strip()}
