from __future__ import annotations

import pytest
from fake_engine import FakeEngine


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Stands where the client finds its engine."""
    pytest.importorskip("autogen_agentchat", reason="needs the autogen extra")
    engine = FakeEngine("fake", pause_s=0.002)
    monkeypatch.setattr("kvcomm_agents.entrypoints.clients.settings.engine_for", lambda model, config: engine)
    return engine
