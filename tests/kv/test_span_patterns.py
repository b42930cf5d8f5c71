"""Messages as real agent apps embed them in other agents' prompts, found again by SpanIndex."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kvcomm_agents.kv.span_index import SpanIndex
from kvcomm_agents.models.loading import DEFAULT_MODEL, load_tokenizer
from kvcomm_agents.request import Message
from kvcomm_agents.text.prompt import PromptRenderer

pytestmark = pytest.mark.weights

PROSE = (
    "The quarterly report shows that revenue grew by 12.5% while operating costs stayed flat. Margins improved "
    "in every region except Latin America, where currency effects took away most of the gain."
)
MARKDOWN = (
    "## Findings\n\n1. **Latency** fell from 240 ms to 95 ms.\n2. Throughput doubled.\n\n| model | ms |\n|---|---|\n"
    "| a | 95 |\n| b | 240 |\n\nSee *appendix B* for the method and the raw numbers."
)
CODE = (
    "```python\ndef merge(left, right):\n    out = []\n    while left and right:\n"
    "        out.append((left if left[0] <= right[0] else right).pop(0))\n    return out + left + right\n```"
)
UNICODE = "Die Größe beträgt 30 m². 東京の人口は約1400万人です。Ça coûte 5 €, et c'est déjà trop cher 🎉 pour nous."
DIALOGUE = (
    '"I don\'t agree," she said; "the risk is far too high, and it\'s already been tried twice without any success."'
)
MESSAGES = (PROSE, MARKDOWN, CODE, UNICODE, DIALOGUE)
QUESTION = "Should the company move its main office to Lisbon next year, given what we know about costs and hiring?"


def chat(*turns: tuple[str, str], system: str = "You are a careful analyst.") -> list[Message]:
    return [Message("system", system), *(Message(role, content) for role, content in turns)]


@dataclass(frozen=True)
class Pattern:
    """How an app puts earlier messages into the next prompt, and how many of their tokens survive it."""

    name: str
    compose: Callable[[tuple[str, ...]], list[Message]]
    share: float = 0.95
    times: int = 1  # each message stands so often in the prompt


def _history(m: tuple[str, ...]) -> str:
    return "".join(f"\n{'Bull' if i % 2 else 'Bear'} Analyst: {text}" for i, text in enumerate(m))


def _transferred(m: tuple[str, ...]) -> list[Message]:
    call = [{"type": "function", "function": {"name": "transfer_to_writer", "arguments": {}}}]
    handoff = [
        Message("assistant", "", "supervisor", {"tool_calls": call}),
        Message("tool", "Successfully transferred to writer", "transfer_to_writer", {"tool_call_id": "c1"}),
    ]
    spoken = [Message("assistant", text, "writer") for text in m]
    return [
        *chat(("user", QUESTION), system="You write."),
        *handoff,
        *spoken,
        Message("assistant", "Transferring back"),
    ]


PATTERNS = [
    Pattern("1 shared state", lambda m: chat(("user", QUESTION), *(("assistant", text) for text in m))),
    Pattern("2 re-wrapped as user", lambda m: [*chat(), *(Message("user", text, "researcher") for text in m)]),
    Pattern(
        "3 placeholder after a persona",
        lambda m: chat(*(("user", text) for text in m), system="You are Ada, 41, an economist.\nStay in character."),
    ),
    Pattern("4 roles swapped", lambda m: chat(*((("user", "assistant")[i % 2], t) for i, t in enumerate(m)))),
    Pattern(
        "5 reports in slots",
        lambda m: chat(("user", "".join(f"Report {i} of the team: {t}\n" for i, t in enumerate(m)) + "\nDecide.")),
    ),
    Pattern("5 headed drafts", lambda m: chat(("user", "".join(f"Draft:\n{t}\n\nNotes:\n" for t in reversed(m))))),
    Pattern("6 transcript", lambda m: chat(("user", f"Debate so far: {_history(m)}\nYour turn."))),
    Pattern(
        "6 transcript, each argument again",
        lambda m: chat(("user", _history(m) + "".join(f"\nLast argument: {t}\n" for t in m))),
        times=2,
    ),
    Pattern("6 speaker names", lambda m: chat(("user", "\n".join(f"writer: {text}" for text in m)))),
    Pattern("7 joined", lambda m: chat(("user", "Sections:\n" + "\n\n".join(m) + "\n\nMerge them."))),
    Pattern("7 joined by rules", lambda m: chat(("user", "\n\n---\n\n".join(m)))),
    Pattern("8 tool result", lambda m: chat(("user", QUESTION), *(("tool", text) for text in m))),
    Pattern("8 tool result in words", lambda m: chat(("user", "\n".join(f"Tool result: {text}" for text in m)))),
    Pattern("9 handoff", _transferred),
    Pattern(
        "9 handoff inline",
        lambda m: chat(*(("assistant", f"<name>writer</name><content>{text}</content>") for text in m)),
    ),
    Pattern("10 repr", lambda m: chat(("user", f"Past steps: {[('step', text) for text in m]}")), share=0.0),
    Pattern("10 json", lambda m: chat(("user", json.dumps({"reports": m}, indent=2))), share=0.0),
    Pattern("11 tagged", lambda m: chat(("user", "\n".join(f"<finding>\n{text}\n</finding>" for text in m)))),
    Pattern("11 headed", lambda m: chat(("user", "".join(f"# Finding\n{text}\n\n" for text in m)))),
    Pattern("11 stripped", lambda m: chat(("user", "\n".join(f"Context:\n\n{text.strip()}" for text in m)))),
    Pattern("11 cut to 60 %", lambda m: chat(("user", "\n\n".join(t[: len(t) * 6 // 10] for t in m))), share=0.5),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_messages_are_found_where_apps_put_them(pattern: Pattern):
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    index, spans = SpanIndex(), {}
    for number, text in enumerate((*MESSAGES, QUESTION)):
        spans[number] = tokenizer(text, add_special_tokens=False)["input_ids"]
        index.add(number, spans[number])
    ids = PromptRenderer(tokenizer).ids(pattern.compose(MESSAGES))
    found = dict.fromkeys(spans, 0)
    for match in index.find(ids):
        length = match.stop - match.start
        assert list(ids[match.start : match.stop]) == spans[match.span][match.offset : match.offset + length]
        found[match.span] += length
    for number in range(len(MESSAGES)):
        assert found[number] >= pattern.share * pattern.times * len(spans[number]), MESSAGES[number]


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.name[0] in "12348"], ids=lambda p: p.name)
def test_parts_are_the_messages_own_tokens(pattern: Pattern):
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    messages = pattern.compose(MESSAGES)
    renderer = PromptRenderer(tokenizer)
    rendered = renderer.segments(messages)
    assert rendered.ids == renderer.ids(messages)
    assert [part.message for part in rendered.parts] == [i for i, m in enumerate(messages) if m.content]
    for part in rendered.parts:
        alone = tokenizer(messages[part.message].content, add_special_tokens=False)["input_ids"]
        found = list(rendered.ids[part.start : part.stop])
        # A token at either end may merge with what the template puts around the content, and is left out then.
        whole = [alone[a : len(alone) - b] for a in (0, 1) for b in (0, 1)]
        assert found in (whole if messages[part.message].role == "tool" else [alone])
