from __future__ import annotations

import importlib
from typing import Any

import pytest
from faces import FACES, Face
from fake_engine import FakeEngine


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Stands where every client finds its engine."""
    engine = FakeEngine("fake", pause_s=0.002)
    monkeypatch.setattr("kvcomm_agents.entrypoints.clients.settings.engine_for", lambda model, config: engine)
    return engine


@pytest.fixture(params=FACES, ids=lambda face: face.package)
def kind(request: pytest.FixtureRequest) -> type[Face]:
    face: type[Face] = request.param
    pytest.importorskip(face.framework, reason=f"not installed; {face.package} names the extra that brings it")
    importlib.import_module(face.package)
    return face


@pytest.fixture
def face(kind: type[Face], fake: FakeEngine) -> Any:
    return kind()
