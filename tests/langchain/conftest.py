from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeEngine]:
    """Puts fakes where `ChatKVComm` finds its engines, one for each model name."""
    made: dict[str, FakeEngine] = {}

    def shared(model: str, config: Any) -> FakeEngine:
        return made.setdefault(model, FakeEngine(model))

    monkeypatch.setattr("kvcomm_agents.entrypoints.clients.settings.engine_for", shared)
    return made


@pytest.fixture
def engine(engines: dict[str, FakeEngine]) -> FakeEngine:
    return engines.setdefault("fake", FakeEngine("fake"))
