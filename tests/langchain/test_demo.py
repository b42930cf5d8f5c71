"""The demo runs, measures every call, and keeps LangChain out of the engine's imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from typer.testing import CliRunner

from kvcomm_agents.entrypoints.cli.app import app
from kvcomm_agents.errors import ConfigError
from langchain_kvcomm.demo import PRACTICE_TASKS, run_demo

ROUND = ["planner", "coder", "reviewer", "coder", "reviewer"]


def test_every_call_is_measured_right_after_it(
    engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_demo("fake", tmp_path / "out.json", max_tokens=3)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["model"] == "fake"
    calls = found["calls"]
    assert [call["agent"] for call in calls] == ROUND * 2
    asked = [request for request in engine.requests if request.namespace == "default"]
    practice, team = asked[: -2 * len(ROUND)], asked[-2 * len(ROUND) :]
    assert [request.agent for request in practice] == ROUND * len(PRACTICE_TASKS)
    assert [request.agent for request in team] == ROUND * 2
    after = [engine.requests[engine.requests.index(request) + 1] for request in team]
    assert all(request.reuse == "off" and request.params.max_tokens == 1 for request in after)
    assert [len(request.prompt_ids or ()) for request in after] == [call["prompt_tokens"] for call in calls]
    for call in calls:
        parts = call["computed_tokens"] + call["placed_exact_tokens"] + call["placed_corrected_tokens"]
        assert parts == call["prompt_tokens"]
    assert calls[0]["placed_exact_tokens"] > 100, "the planner's system prompt, known from practice"
    assert calls[5]["placed_exact_tokens"] > 100, "the planner's system prompt, on the second task"
    whole = " ".join(capsys.readouterr().out.split())
    assert whole.count("I heard: ") == 10, "every answer is shown, and shown once"
    assert calls[4]["placed_exact_tokens"] > calls[2]["prompt_tokens"] - 5, "the reviewer's growing conversation"
    for text in ("planner", "total", "speedup"):
        assert text in whole


def test_a_path_that_cannot_be_written_fails_first(engine: FakeEngine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        run_demo("fake", tmp_path / "nowhere" / "out.json", 4)
    assert engine.requests == []


def test_the_command_line_does_not_import_langchain() -> None:
    code = (
        "import pkgutil, importlib, sys, kvcomm_agents\n"
        "for module in pkgutil.walk_packages(kvcomm_agents.__path__, 'kvcomm_agents.'):\n"
        "    importlib.import_module(module.name)\n"
        "sys.exit(any('lang' in name.partition('.')[0] for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("absent", ["langchain_core", "langgraph", "langchain_kvcomm"])
def test_without_langgraph_the_error_names_the_extra(absent: str) -> None:
    code = (
        f"import sys; sys.modules[{absent!r}] = None\nfrom kvcomm_agents.entrypoints.cli.app import app; app(['demo'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "kvcomm-agents[langgraph]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_runs_it(engine: FakeEngine, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = CliRunner().invoke(app, ["demo", "--model", "fake", "--max-tokens", "2", "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert len(json.loads(out.read_text())["calls"]) == len(ROUND) * 2
