"""What the options of chat clients come to in a request, and which values of `bad_values.POOL` are good for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NAMES = {"'x'": "x", "'7'": "7", "'EXACT'": "EXACT"}
EXACT = {"'exact'": "exact", "numpy 'exact'": "exact", "own 'exact'": "exact", "enum 'exact'": "exact"}
ONE_UP = {"1": 1, "7": 7, "numpy 7": 7, "enum 7": 7, "'7'": 7}
COUNT = {"0": 0, "-1": -1, **ONE_UP}
SHARE = {"1": 1.0, "0.5": 0.5, "numpy 0.5": 0.5, "Decimal 0.5": 0.5, "Fraction 1/2": 0.5}
AMOUNT = {**SHARE, "7": 7.0, "'7'": 7.0, "numpy 7": 7.0, "enum 7": 7.0, "2.5": 2.5}
SECONDS = {"0": 0.0, **AMOUNT}
WORDS = {name: (value,) for name, value in (NAMES | EXACT).items()} | {
    "[]": (),
    "()": (),
    "['exact']": ("exact",),
    "('x', 'y')": ("x", "y"),
    "array of texts": ("x", "y"),
}
# Options, and where they come to in the request; then what is good for them.
OPTIONS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "temperature": (lambda request: request.params.temperature, {"0": 0.0, **AMOUNT}),
    "max_tokens": (lambda request: request.params.max_tokens, ONE_UP),
    "max_completion_tokens": (lambda request: request.params.max_tokens, ONE_UP),
    "top_p": (lambda request: request.params.top_p, SHARE),
    "top_k": (lambda request: request.params.top_k, ONE_UP),
    "min_p": (lambda request: request.params.min_p, {"0": 0.0, **SHARE}),
    "repetition_penalty": (lambda request: request.params.repetition_penalty, AMOUNT),
    "seed": (lambda request: request.params.seed, COUNT),
    "stop": (lambda request: request.params.stop, WORDS),
    "timeout": (lambda request: request.timeout_s, SECONDS),
    "reuse": (lambda request: request.reuse, EXACT),
    "kv_namespace": (lambda request: request.namespace, NAMES | EXACT),
    "kv_agent": (lambda request: request.agent, NAMES | EXACT),
}
