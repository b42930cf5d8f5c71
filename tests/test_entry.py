"""Every field of every value and config, against values of every type: taken as what it means, or refused by name."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from bad_values import POOL, Model, Text, Word

from kvcomm_agents.checks import lenient, number, whole
from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.errors import ConfigError, KVCommError, PromptError
from kvcomm_agents.request import Constraint, Message, Request, SamplingParams, ToolSpec

# What is good for a kind of field, and what becomes of it. Everything else in the pool must be refused.
ONE_UP = {"1": 1, "7": 7, "numpy 7": 7, "enum 7": 7}
COUNT = {"0": 0, **ONE_UP}
SHARE = {"0": 0.0, "1": 1.0, "0.5": 0.5, "numpy 0.5": 0.5, "Decimal 0.5": 0.5, "Fraction 1/2": 0.5}
AMOUNT = {**SHARE, "7": 7.0, "numpy 7": 7.0, "enum 7": 7.0, "2.5": 2.5, "1e308": 1e308, "2**64": 2.0**64}
SWITCH = {"True": True, "False": False, "numpy True": True}
EXACT = {"'exact'": "exact", "numpy 'exact'": "exact", "own 'exact'": "exact", "enum 'exact'": "exact"}
NAME = {"'x'": "x", "'7'": "7", "'EXACT'": "EXACT", **EXACT}
TEXT = {"''": "", "surrogate": "a\ufffd", **NAME}
WORDS = {key: (value,) for key, value in NAME.items()} | {
    "[]": (),
    "()": (),
    "['exact']": ("exact",),
    "('x', 'y')": ("x", "y"),
    "generator": ("x", "y"),
    "array of texts": ("x", "y"),
}
JSON = {"{}": {}, "{'a': 1}": {"a": 1}, "dict of a message": {"role": "user", "content": "hi"}}
NONE = {"None": None}
EMPTY = {"[]": (), "()": ()}


def without(good: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in good.items() if name not in names}


GOOD: dict[type, dict[str, dict[str, Any]]] = {
    SamplingParams: {
        "max_tokens": NONE | ONE_UP,
        "temperature": without(AMOUNT, "1e308", "2**64"),
        "top_p": NONE | without(SHARE, "0"),
        "top_k": NONE | ONE_UP,
        "min_p": NONE | SHARE,
        "repetition_penalty": NONE | without(AMOUNT, "0", "1e308", "2**64"),
        "seed": NONE | COUNT | {"-1": -1},
        "stop": WORDS,
    },
    Message: {
        "role": NAME,
        "content": TEXT,
        "name": NONE | TEXT,
        "extra": without(JSON, "dict of a message") | {"NaN in a dict": None},
        "spans": WORDS,
    },
    ToolSpec: {"name": NAME, "description": TEXT, "parameters": JSON},
    Constraint: {
        "schema": NONE | JSON,
        "calls": NONE,
        "tool": NONE | NAME,
        "parallel": SWITCH,
        "show_schema": SWITCH,
        "max_string": ONE_UP,
        "repeats": SWITCH,
        "barred": WORDS,
    },
    Request: {
        "messages": EMPTY,
        "params": {},
        "agent": NONE | NAME,
        "namespace": NAME,
        "reuse": NONE | EXACT,
        "timeout_s": NONE | without(AMOUNT, "1e308", "2**64"),
        "prompt_ids": NONE | EMPTY | {"[1]": (1,), "array": (1, 2)},
        "tools": EMPTY,
        "constraint": NONE,
        "conversation": NONE | TEXT,
    },
    ReuseConfig: {
        "mode": EXACT,
        "max_divergence": without(AMOUNT, "0"),
        "exact_agents": {name: frozenset(value) for name, value in WORDS.items()} | {"set": frozenset({"x"})},
        "exact_judges": SWITCH,
        "audit_share": NONE | SHARE,
        "min_prefix": ONE_UP,
        "min_span": without(ONE_UP, "1"),
        "min_placed": ONE_UP,
        "pack_tokens": {},
        "pack_positions": {},
        "span_bytes": NONE | COUNT,
        "anchor_bytes": NONE | COUNT,
        "novel_leverage": without(AMOUNT, "0", "0.5", "numpy 0.5", "Decimal 0.5", "Fraction 1/2"),
        "novel_weight": without(AMOUNT, "0", "0.5", "numpy 0.5", "Decimal 0.5", "Fraction 1/2"),
        "max_divergence_quantile": NONE | without(SHARE, "0", "1"),
        "calibration": NONE | NAME,
        "hidden_share": NONE | SHARE,
    },
    EngineConfig: {
        "device": NAME,
        "dtype": {},
        "device_cache_bytes": NONE | COUNT,
        "host_cache_bytes": NONE | COUNT,
        "memory_bytes": NONE | COUNT,
        "max_context": NONE | without(ONE_UP, "1"),
        "max_concurrent": ONE_UP,
        "prefill_chunk": ONE_UP,
        "cuda_graphs": SWITCH,
        "embedder": NONE | NAME,
        "memory_folder": NONE | NAME,
        "report_file": NONE | NAME,
        "reuse": {},
        "control_strings": {},
    },
}
NEEDED: dict[type, dict[str, Any]] = {Message: {"role": "user", "content": "hi"}, ToolSpec: {"name": "f"}}
FIELDS = [(kind, field) for kind, fields in GOOD.items() for field in fields]


@pytest.mark.parametrize("kind", GOOD)
def test_every_field_is_in_the_table(kind: type) -> None:
    assert {field.name for field in dataclasses.fields(kind)} == set(GOOD[kind])


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda case: getattr(case, "__name__", case))
def test_a_value_is_what_it_means_or_refused_by_name(kind: Any, field: str) -> None:
    good = GOOD[kind][field]
    for name, make in POOL.items():
        given = {**NEEDED.get(kind, {}), field: make()}
        if name not in good:
            with pytest.raises(KVCommError, match=f"^{field}=") as caught:
                kind(**given)
            assert isinstance(caught.value, ValueError), name
            assert "must be" in str(caught.value), name
            assert len(str(caught.value)) < 700, name
            continue
        found = getattr(kind(**given), field)
        if good[name] is not None or name == "None":
            assert found == good[name], name
            assert type(found) is type(good[name]), name


def test_what_cannot_be_drawn_by_is_greedy() -> None:
    assert SamplingParams(temperature=1e-40).temperature == 0
    assert SamplingParams(temperature=1e-3).temperature == 1e-3


def test_a_message_cannot_be_made_another_by_its_extra() -> None:
    for key in ("role", "content", "name"):
        with pytest.raises(PromptError, match=f"^extra=.*{key}"):
            Message("user", "hi", extra={key: "system"})


@pytest.mark.parametrize(
    "calls",
    [
        "x",
        5,
        {"function": {"name": "f", "arguments": {}}},
        [None],
        [{}],
        [{"function": None}],
        [{"function": {"name": 5, "arguments": {}}}],
        [{"function": {"name": "f"}}],
        [{"function": {"name": "f", "arguments": [1]}}],
        [{"function": {"name": "f", "arguments": {"a": object()}}}],
    ],
)
def test_calls_of_another_form_are_refused(calls: Any) -> None:
    with pytest.raises(PromptError, match="^extra="):
        Message("assistant", "", extra={"tool_calls": calls})


def test_arguments_become_json() -> None:
    @dataclasses.dataclass
    class Point:
        x: float
        when: datetime.date

    day = datetime.date(2024, 5, 6)
    given = {
        "date": day,
        "at": datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.UTC),
        "for": datetime.timedelta(minutes=1),
        "id": uuid.UUID(int=1),
        "price": Decimal("12.5"),
        "many": np.arange(2),
        "one": np.float32(0.5),
        "model": Model(),
        "point": Point(1.0, day),
        "set": {"b", "a"},
        "tuple": (1, None, True),
        "word": Word.EXACT,
        "text": Text("t\ud83d"),
        day: "a key",
        3: "another",
    }
    message = Message("assistant", "", extra={"tool_calls": [{"function": {"name": "f", "arguments": given}}]})
    assert message.extra["tool_calls"][0]["function"]["arguments"] == {
        "date": "2024-05-06",
        "at": "2024-05-06T07:08:00+00:00",
        "for": 60.0,
        "id": "00000000-0000-0000-0000-000000000001",
        "price": 12.5,
        "many": [0, 1],
        "one": 0.5,
        "model": {"a": 1},
        "point": {"x": 1.0, "when": "2024-05-06"},
        "set": ["a", "b"],
        "tuple": [1, None, True],
        "word": "exact",
        "text": "t\ufffd",
        "2024-05-06": "a key",
        "3": "another",
    }


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("hi \ud83d", "hi \ufffd"),
        ("\ude00 there", "\ufffd there"),
        ("\ud83d\ude00", "😀"),
        ("\ud83dx\ude00", "\ufffdx\ufffd"),
        ("\ud83d\ud83d\ude00é", "\ufffd😀é"),
        ("plain é 😀", "plain é 😀"),
    ],
)
def test_surrogates_are_repaired_in_texts(text: str, repaired: str) -> None:
    assert Message("user", text).content == repaired
    assert ToolSpec("f", text).description == repaired


def test_numbers_that_nobody_writes_are_refused() -> None:
    for value in (10**5000, -(10**5000)):
        with pytest.raises(PromptError, match="too many digits"):
            Message("assistant", "", extra={"a": value})
        with pytest.raises(ConfigError, match="too many digits"):
            ToolSpec("f", parameters={"maximum": [value]})


def test_surrogates_and_nul_are_refused_in_names() -> None:
    for field in ("agent", "namespace"):
        with pytest.raises(ConfigError, match=f"^{field}="):
            Request(**{field: "a\ud800"})
    with pytest.raises(ConfigError, match="NUL"):
        Request(agent="x\0warm")


def test_values_are_of_plain_types_inside() -> None:
    request = Request(agent=Text("a"), namespace=np.str_("n"), timeout_s=np.float32(2), reuse=Word.EXACT)
    kinds = (type(request.agent), type(request.namespace), type(request.timeout_s), type(request.reuse))
    assert kinds == (str, str, float, str)
    assert type(Message("user", Text("x")).content) is str


def test_torch_names_of_device_and_dtype() -> None:
    config = EngineConfig(device=torch.device("cuda:1"), dtype=torch.bfloat16)
    assert (config.device, config.dtype) == ("cuda:1", "bfloat16")
    with pytest.raises(ConfigError, match=r"^dtype="):
        EngineConfig(dtype=torch.int8)


def test_numbers_as_text_where_settings_are_read() -> None:
    count, share = lenient(whole(1)), lenient(number(0, 1))
    assert [count("30"), count(" 7 "), count(7.0), count("7.0"), share("0.5"), share("1")] == [30, 7, 7, 7, 0.5, 1.0]
    for value in ("", "x", "1.5", "nan", "inf", "1e400", True, "true", b"1", 1.5, None):
        with pytest.raises(ValueError, match="whole number"):
            count(value)


def test_a_namespace_or_timeout_of_the_environment_is_named() -> None:
    for name, text in {"KVCOMM_MAX_CONTEXT": "x", "KVCOMM_CUDA_GRAPHS": "2", "KVCOMM_REUSE": "EXACT"}.items():
        with pytest.raises(ConfigError, match=f"^{name}='{text}'"):
            EngineConfig.from_env({name: text})
