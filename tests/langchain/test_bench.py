"""`kvcomm bench apps` and `serve` count what happened, on a tiny model in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from two_agents import make_speaker
from typer.testing import CliRunner

from benchmarks.apps import load_app, measure_app
from benchmarks.options import AppsOptions, ServeOptions
from benchmarks.serve import measure_serve
from kvcomm_agents.engine.engine import _registry
from kvcomm_agents.entrypoints.cli.app import app as cli
from kvcomm_agents.errors import ConfigError

APP = '''"""Two agents."""
INPUT = {"topic": "the sea and its tides in winter"}
MORE = [{"topic": "the hills and their springs in May"}]


def build(llm):
    from langgraph.graph import START, StateGraph

    def write(state):
        return {**state, "text": llm.invoke(f"You are a writer of few words. Write on {state['topic']}.").content}

    def edit(state):
        return {**state, "out": llm.invoke(f"Edit. On {state['topic']} was written: {state['text']}").content}

    graph = StateGraph(dict).add_node("write", write).add_node("edit", edit)
    return graph.add_edge(START, "write").add_edge("write", "edit").compile()
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    loaded, folder = make_speaker(), tmp_path_factory.mktemp("tiny")
    loaded.model.config.max_position_embeddings = 8192
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    yield str(folder)
    for engine in [engine for (name, _), engine in _registry.items() if name == str(folder)]:
        engine.close()


def test_apps_are_counted_run_by_run(folder: str, tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text(APP)
    app = load_app(tmp_path / "pair.py")
    assert (app.name, app.title, len(app.inputs)) == ("pair", "Two agents.", 2)
    options = AppsOptions(files=[], model=folder, runs=3, max_tokens=16)
    _, found = measure_app(app, options, lambda *_: None)
    for mode in ("auto", "corrected"):
        first, later, last = (found[mode][part] for part in ("first", "later", "last"))
        assert (first["calls"], later["calls"], last["calls"]) == (2, 4, 2)
        assert later["spans_found"] >= 3
        assert 0 < later["span_tokens"] < later["prompt_tokens"]
        placed = later["placed_exact_tokens"] + later["placed_corrected_tokens"]
        assert later["placed_share"] == pytest.approx(placed / later["prompt_tokens"], abs=1e-4)
        assert later["placed_share"] > first["placed_share"]
    assert found["corrected"]["later"]["placed_corrected_tokens"] > 0


def test_what_is_no_app_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing.py"):
        load_app(tmp_path / "missing.py")
    for text, word in (("import no_such_package", "no_such_package"), ("INPUT = 1", "build")):
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(ConfigError, match=word):
            load_app(tmp_path / "bad.py")


def test_runs_side_by_side_answer_as_one_at_a_time(folder: str) -> None:
    report = measure_serve(ServeOptions(model=folder, runs=3, rounds=1, max_tokens=3), (3,), lambda *_: None)
    assert list(report["levels"]) == ["1", "3"]
    for level in report["levels"].values():
        assert level["equal"] == level["answers"] == 9
        assert 0 < level["ttft_median_s"] <= level["ttft_p95_s"]
        assert level["output_tokens_per_s"] > level["runs_per_s"] > 0


def test_both_commands_write_what_they_print(folder: str, tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text(APP)
    out = tmp_path / "out.json"
    common = ["--model", folder, "--max-tokens", "4", "--json", str(out)]
    done = CliRunner().invoke(cli, ["bench", "apps", str(tmp_path), "--runs", "2", *common])
    assert done.exit_code == 0, done.output
    assert set(json.loads(out.read_text())["apps"]) == {"pair"}
    assert "│ pair │     2 │" in done.output
    done = CliRunner().invoke(cli, ["bench", "serve", "--runs", "1", "--rounds", "1", *common])
    assert done.exit_code == 0, done.output
    assert set(json.loads(out.read_text())["levels"]) == {"1", "4", "16"}
