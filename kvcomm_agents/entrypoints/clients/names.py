"""Names: settings and options as other chat clients have them, brought into ours."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ... import request_checks
from ...checks import Unfit, lenient
from ...errors import ConfigError

ALIASES = {
    "max_completion_tokens": "max_tokens",
    "request_timeout": "timeout",
    "stop_sequences": "stop",
    "model_name": "model",
}
"""What others call a setting of ours."""

# Of no meaning to a model in this process: usage is always told, and there is no service that counts its users.
_WITHOUT_MEANING = frozenset({"stream_usage", "stream_options", "user"})
# Values that ask for nothing; others ask for what cannot be had here.
_NEUTRAL = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "logit_bias": {}}

_SECONDS = lenient(request_checks.timeout)


def in_our_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings or options under our names, without those that mean nothing here.

    Args:
        given: by name. What is unknown stays as it is.

    Raises:
        ConfigError: two names of one setting have different values.
    """
    named: dict[str, Any] = {}
    for name, value in given.items():
        if name in _WITHOUT_MEANING or (name in _NEUTRAL and _is_neutral(name, value)):
            continue
        ours = ALIASES.get(name, name)
        if named.get(ours) is None:
            named[ours] = value
        elif value is not None and value != named[ours]:
            raise ConfigError(f"{ours} is given twice, as {named[ours]!r} and as {name}={value!r}; give one of them")
    return named


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or (type(value) in (int, float, bool, dict) and value == _NEUTRAL[name])


def seconds(value: Any) -> float | None:
    """A check: a timeout in any of the forms in use.

    These are a number, a number as text, a `timedelta`, `(connect, read)` or `(connect, read, write, pool)`, and
    objects such as `httpx.Timeout`. Nothing is connected to here: what counts is how long one waits for an answer.

    Returns:
        Seconds; `None` where a form says that it waits for ever.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif isinstance(value, tuple | list) and len(value) in (2, 4):
        value = value[1]
    elif hasattr(value, "connect") and hasattr(value, "read"):  # httpx.Timeout
        value = value.read
    elif hasattr(value, "total"):  # aiohttp.ClientTimeout
        value = value.total
    if value is None:
        return None
    try:
        return float(_SECONDS(value))
    except Unfit as unfit:
        raise Unfit(f"{unfit}, (connect, read) or an httpx.Timeout") from None
