"""The command line: what it prints, its exit codes, and that it starts without torch."""

import hashlib
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from kvcomm_agents._version import __version__
from kvcomm_agents.entrypoints.cli.app import app
from kvcomm_agents.models import loading as models
from kvcomm_agents.models.cache import MANIFEST


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(*args):
    return CliRunner().invoke(app, args)


def make_cached(cache):
    folder = cache / "models" / "tiny-0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    files = {"config.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}}
    entry = {"name": "tiny", "source": "tiny.gguf", "source_sha256": "0", "dtype": "bfloat16", "files": files}
    (folder / MANIFEST).write_text(json.dumps(entry))
    return folder


def test_version():
    assert run("--version").output.strip() == f"kvcomm-agents {__version__}"


def test_help_names_every_command_and_imports_no_torch():
    code = (
        "import sys; from kvcomm_agents.entrypoints.cli.app import app; app(['--help'], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    assert "models" in done.stdout


@pytest.mark.parametrize("args", [("models",), ("models", "list")])
def test_an_empty_cache_says_how_to_fill_it(cache, args):
    done = run(*args)
    assert done.exit_code == 0
    assert "kvcomm models fetch" in done.output


def test_an_error_is_one_line_and_exit_code_2(cache):
    done = run("models", "fetch", "nowhere.gguf")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "nowhere.gguf" in done.stderr
    assert "Traceback" not in done.output


def test_verify_finds_a_changed_file(cache):
    folder = make_cached(cache)
    assert run("models", "verify").exit_code == 0
    (folder / "config.json").write_text('{"x": 1}')
    done = run("models", "verify")
    assert done.exit_code == 1
    assert "config.json" in done.output


def test_list_shows_a_cached_model(cache):
    folder = make_cached(cache)
    output = run("models", "list").output
    assert "tiny" in output
    assert str(folder)[:20] in output.replace("\n", "")


def test_memory_goes_by_its_former_names_too(tmp_path):
    said = [run(*words, str(tmp_path)).output for words in (("memory", "list"), ("memory", "ls"), ("store", "ls"))]
    assert len(set(said)) == 1
    assert "0 saved" in " ".join(said[0].split())
    shown = run("--help").output, run("memory", "--help").output
    assert " memory " in shown[0]
    assert not any(f" {name} " in text for name, text in zip(("store", "ls"), shown, strict=True))


@pytest.mark.weights
def test_fetching_the_default_again_changes_nothing():
    folder = models.fetch_default()
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    done = run("models", "fetch")
    assert done.exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
