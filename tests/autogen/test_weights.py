"""AutoGen teams on the default model's weights; the example runs every kind of team at length."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("autogen_agentchat", reason="needs the autogen extra")

from kvcomm_agents.models.loading import DEFAULT_MODEL

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def teams() -> Any:
    path = Path(__file__).parents[2] / "examples" / "autogen_teams.py"
    spec = spec_from_file_location("autogen_teams", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


TOKENS = 20  # fewer would cut its calls


async def test_exact_reuse_changes_no_word(teams: Any) -> None:
    """Of a Swarm, whose agents call tools between what they say."""
    pytest.importorskip("llguidance", reason="needs the tools extra")
    runs = [one for mode in ("off", "exact") async for one in teams.run_teams(["Swarm"], DEFAULT_MODEL, TOKENS, mode)]
    dense, exact = (one["Swarm"] for one in runs)
    assert exact.transcript == dense.transcript
    assert {source for source, _ in exact.transcript} == {"user", "writer", "critic", "editor"}
    first, second = teams.rounds(exact.reports)[:2]
    assert (first["calls"], second["calls"]) == (3, 3)
    assert first["corrected"] == second["corrected"] == 0
    assert second["exact"] > 0.4 * second["prompt"]
