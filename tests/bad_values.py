"""Values of every type that somebody might pass somewhere, by name."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
from pydantic import BaseModel


class Word(Enum):
    EXACT = "exact"


class Count(IntEnum):
    SEVEN = 7


class Text(str):
    """A text of somebody's own class."""


class Model(BaseModel):
    a: int = 1


class Rude:
    """What cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def _cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def _deep() -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(20_000):
        value = {"a": value}
    return value


def _branching() -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    for _ in range(60):
        value = {"a": value, "b": value}
    return value


POOL: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "numpy True": lambda: np.bool_(True),
    "0": lambda: 0,
    "1": lambda: 1,
    "7": lambda: 7,
    "-1": lambda: -1,
    "2**64": lambda: 2**64,
    "10**5000": lambda: 10**5000,
    "numpy 7": lambda: np.int64(7),
    "enum 7": lambda: Count.SEVEN,
    "0.5": lambda: 0.5,
    "2.5": lambda: 2.5,
    "-0.5": lambda: -0.5,
    "numpy 0.5": lambda: np.float32(0.5),
    "Decimal 0.5": lambda: Decimal("0.5"),
    "Fraction 1/2": lambda: Fraction(1, 2),
    "NaN": lambda: float("nan"),
    "numpy NaN": lambda: np.float64("nan"),
    "Decimal NaN": lambda: Decimal("sNaN"),
    "infinity": lambda: float("inf"),
    "-infinity": lambda: float("-inf"),
    "1e308": lambda: 1e308,
    "complex": lambda: 1j,
    "''": lambda: "",
    "'x'": lambda: "x",
    "'7'": lambda: "7",
    "'EXACT'": lambda: "EXACT",
    "'exact'": lambda: "exact",
    "numpy 'exact'": lambda: np.str_("exact"),
    "own 'exact'": lambda: Text("exact"),
    "enum 'exact'": lambda: Word.EXACT,
    "surrogate": lambda: "a\ud83d",
    "bytes": lambda: b"exact",
    "[]": lambda: [],
    "()": lambda: (),
    "{}": lambda: {},
    "['exact']": lambda: ["exact"],
    "('x', 'y')": lambda: ("x", "y"),
    "['']": lambda: [""],
    "[1]": lambda: [1],
    "[None]": lambda: [None],
    "{'a': 1}": lambda: {"a": 1},
    "{1: object}": lambda: {1: object()},
    "set": lambda: {"x"},
    "generator": lambda: (text for text in ("x", "y")),
    "array": lambda: np.array([1, 2]),
    "array of texts": lambda: np.array(["x", "y"]),
    "object": object,
    "rude": Rude,
    "class": lambda: dict,
    "function": lambda: len,
    "pydantic": Model,
    "pydantic class": lambda: Model,
    "dict of a message": lambda: {"role": "user", "content": "hi"},
    "dicts of messages": lambda: [{"role": "user", "content": "hi"}],
    "cyclic": _cyclic,
    "deep": _deep,
    "branching": _branching,
    "NaN in a dict": lambda: {"a": float("nan")},
}
