"""Settings and options of every client against values of every type: taken as what they mean, or refused by name."""

from __future__ import annotations

import datetime
from typing import Any

import httpx
import pytest
from bad_values import POOL
from client_options import EXACT, NAMES, OPTIONS
from entry_ids import named
from faces import ADD, AG2Classic, Face
from fake_engine import FakeEngine

from kvcomm_agents.config import EngineConfig
from kvcomm_agents.errors import ConfigError, KVCommError, PromptError

ASKED = [("user", "one two three")]
# Under another name, what stands in the message.
TOLD_AS = {"max_completion_tokens": "max_tokens"}


def refused(name: str) -> Any:
    return pytest.raises(KVCommError, match=f"^{TOLD_AS.get(name, name)}=")


@pytest.mark.parametrize("option", OPTIONS)
async def test_options_of_a_call(kind: type[Face], fake: FakeEngine, option: str) -> None:
    read, good = OPTIONS[option]
    fake.pause_s = 0
    for name, make in POOL.items():
        if name == "None":  # leaves the constructor's
            continue
        del fake.requests[:]
        if name in good:
            await kind().ask(ASKED, **{option: make()})
            assert read(fake.requests[0]) == good[name], name
            continue
        for ask in (kind().ask, kind().stream):
            with refused(option) as caught:
                await ask(ASKED, **{option: make()})
            assert isinstance(caught.value, ValueError), name
        assert fake.requests == [], name
    fake.script = lambda request: "fine"
    assert (await kind().ask(ASKED)).text == "fine"


@pytest.mark.parametrize("setting", OPTIONS)
async def test_settings_of_the_constructor(kind: type[Face], fake: FakeEngine, setting: str) -> None:
    read, good = OPTIONS[setting]
    fake.pause_s = 0
    for name, make in POOL.items():
        if name == "None":
            continue
        del fake.requests[:]
        if name in good:
            await kind(**{setting: make()}).ask(ASKED)
            assert read(fake.requests[0]) == good[name], name
        else:
            with refused(setting):
                made(kind(**{setting: make()}))


FOR_ALL: dict[str, set[str]] = {
    "exact_selectors": {"True", "False", "numpy True"},
    "prefer_tools": {"True", "False", "numpy True"},
    "max_string": {"1", "7", "numpy 7", "enum 7", "'7'"},
    "device": {"None", *NAMES, *EXACT},
    "dtype": {"None"},
    "control_strings": {"None"},
    "engine_config": {"None", "{}"},
    "model": {*NAMES, *EXACT},
}


@pytest.mark.parametrize("setting", FOR_ALL)
def test_settings_that_only_the_constructor_has(kind: type[Face], fake: FakeEngine, setting: str) -> None:
    for name, make in POOL.items():
        given: dict[str, Any] = {setting: make()}
        if name in FOR_ALL[setting]:
            made(kind(**given))
        elif name == "None" and kind is AG2Classic:  # whose entries may hold it for what is not set
            continue
        elif not (setting == "model" and kind is AG2Classic):  # whose framework wants one itself
            with refused(setting):
                made(kind(**given))


def made(face: Any) -> Any:
    return next(getattr(face, name) for name in ("client", "config", "wrapper") if hasattr(face, name))()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("30", 30),
        (" 0.5 ", 0.5),
        (30, 30),
        ((5, 30), 30),
        ([5, 30.5], 30.5),
        ((5, None), None),
        ((1, 2, 3, 4), 2),
        (httpx.Timeout(30), 30),
        (httpx.Timeout(5, read=60), 60),
        (httpx.Timeout(None), None),
        (datetime.timedelta(minutes=1), 60),
    ],
    ids=named,
)
async def test_timeouts_of_other_clients(kind: type[Face], fake: FakeEngine, given: Any, seconds: float | None) -> None:
    await kind(timeout=given).ask(ASKED)
    await kind(request_timeout=given).ask(ASKED)
    if kind is not AG2Classic:  # where what stands in the entry wins
        await kind(timeout=9).ask(ASKED, timeout=given)
        await kind(timeout=9).stream(ASKED, timeout=given)
    assert {request.timeout_s for request in fake.requests} == {seconds}


@pytest.mark.parametrize(
    "given", ["30s", (1, 2, 3), ("x", "y"), httpx.Timeout, datetime.timedelta(-1), {"read": 5}], ids=named
)
async def test_timeouts_that_are_none(kind: type[Face], fake: FakeEngine, given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^timeout=.*number of seconds"):
        made(kind(timeout=given))
    with pytest.raises(ConfigError, match=r"^timeout=.*number of seconds"):
        await kind().ask(ASKED, timeout=given)
    assert fake.requests == []


async def test_what_means_nothing_here_is_passed_over(kind: type[Face], fake: FakeEngine) -> None:
    neutral = {"user": "u1", "stream_usage": True, "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0}
    await kind(**neutral).ask(ASKED)
    await kind().ask(ASKED, **neutral)
    await kind().stream(ASKED, **neutral)
    assert len(fake.requests) == 3
    for name, value in {"n": 2, "frequency_penalty": 0.5, "num_ctx": 5, "logprobs": True}.items():
        with pytest.raises(ConfigError, match=name):
            made(kind(**{name: value}))
        with pytest.raises(ConfigError, match=name):
            await kind().ask(ASKED, **{name: value})


async def test_one_setting_under_two_names(kind: type[Face], fake: FakeEngine) -> None:
    with pytest.raises(ConfigError, match="max_tokens is given twice"):
        made(kind(max_tokens=5, max_completion_tokens=6))
    await kind(max_tokens=5, max_completion_tokens=5).ask(ASKED)
    await kind(max_tokens=None, max_completion_tokens=6).ask(ASKED)
    assert [request.params.max_tokens for request in fake.requests] == [5, 6]


def test_an_engine_config_may_be_a_dict(kind: type[Face], fake: FakeEngine) -> None:
    made(kind(engine_config={"max_context": 99, "reuse": {"mode": "exact"}}))
    for wrong in ({"max_context": 1}, {"max_contxt": 99}, {"reuse": {"mode": "EXACT"}}, {"reuse": {"moode": 1}}, "x"):
        with pytest.raises(ConfigError):
            made(kind(engine_config=wrong))
    assert EngineConfig() == EngineConfig()


@pytest.mark.parametrize(
    "choice", ["subtract", 5, ["add"], b"add", 0.5, {"x": 1}, {"mode": "whenever"}, object()], ids=named
)
async def test_choices_that_are_none(kind: type[Face], fake: FakeEngine, choice: Any) -> None:
    with pytest.raises(ConfigError, match="tool_choice"):
        await kind().ask(ASKED, [ADD], choice)
    assert fake.requests == []


@pytest.mark.parametrize(
    "given", [5, "x", [], b"x", int, {"type": "xml"}, {"type": "json_schema"}, object()], ids=named
)
async def test_formats_that_are_none(kind: type[Face], fake: FakeEngine, given: Any) -> None:
    with pytest.raises(ConfigError, match="response_format"):
        await kind().ask(ASKED, response_format=given)
    assert fake.requests == []


async def test_lone_surrogates_are_repaired_in_messages(kind: type[Face], fake: FakeEngine) -> None:
    await kind().ask([("system", "s\ud83d"), ("user", "hi \ud83d\ude00 \ud83d")])
    assert [message.content for message in fake.requests[0].messages] == ["s\ufffd", "hi 😀 \ufffd"]


async def test_bad_messages_are_refused(kind: type[Face], fake: FakeEngine) -> None:
    with pytest.raises(PromptError):
        await kind().image()
    assert fake.requests == []
