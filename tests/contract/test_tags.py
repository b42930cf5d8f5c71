"""Answers carry the tags of their spans where the framework keeps them; elsewhere their words are found anyway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from faces import Face
from fake_engine import FakeEngine
from handed import CARRIES, QUESTION, Way, read_again
from two_agents import make_speaker

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.entrypoints.clients.messages import carried_tags
from kvcomm_agents.models.loading import LoadedModel

ways = pytest.mark.parametrize("way", get_args(Way))


@pytest.fixture(scope="module")
def speaker() -> LoadedModel:
    return make_speaker()


@pytest.fixture
def engine(speaker: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = Engine(speaker, EngineConfig(reuse=ReuseConfig(min_placed=12)))
    monkeypatch.setattr("kvcomm_agents.entrypoints.clients.settings.engine_for", lambda model, config: engine)
    yield engine
    engine.close()


@ways
async def test_tags_come_back_where_messages_keep_them(face: Face, fake: FakeEngine, way: Way) -> None:
    await read_again(face, way)
    answer = f"I heard: {QUESTION}"
    (message,) = [one for one in fake.requests[1].messages if one.content.strip() == answer]
    assert message.spans == ((f"span of {answer}",) if way in CARRIES[type(face)] else ())


@ways
async def test_an_answer_is_found_when_it_is_read_again(kind: type[Face], engine: Engine, way: Way) -> None:
    await read_again(kind(temperature=1.0, top_k=3, seed=7, max_tokens=40), way)
    first, second = engine.reports[:2]
    assert (first.output_tokens, first.spans_found) == (40, 0)
    # Its last token was never fed to the model; one may merge with what stands before or behind.
    least = 38 + (0 if way == "again" else len(QUESTION) - 2)  # bytes are tokens here
    assert second.span_tokens >= least


@pytest.mark.parametrize(
    ("carriers", "tags"),
    [
        ([], ()),
        ([None, {}, {"kvcomm": "x"}, {"kvcomm": {"spans": "x"}}], ()),
        ([{"kvcomm": {"spans": ["a", 3, "b"]}}], ("a", "b")),
        ([{"other": 1}, {"kvcomm": {"spans": ("a",)}}, {"kvcomm": {"spans": ["b"]}}], ("a",)),
    ],
)
def test_carried_tags(carriers: list[Any], tags: tuple[str, ...]) -> None:
    assert carried_tags(*carriers) == tags
