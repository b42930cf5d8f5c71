"""The first async call of a process imports, loads and waits for nothing in the event loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faces import FACES, AG2Classic

from kvcomm_agents.models.loading import LoadedModel

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as its users have one."""
    folder, loaded = tmp_path_factory.mktemp("model"), tiny("llama")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


# AG2 Classic has no async client: it calls the one it has in a thread.
@pytest.mark.parametrize(
    ("package", "framework"),
    [("langchain_kvcomm", "langgraph")] + [(face.package, face.framework) for face in FACES if face is not AG2Classic],
)
def test_first_calls(package: str, framework: str, folder: Path) -> None:
    pytest.importorskip(framework, reason=f"not installed; {package} names the extra that brings it")
    paths = [HERE, HERE.parent, *map(Path, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, str(HERE / "first_calls.py"), package, str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert run.stdout.endswith("ok\n"), run.stdout + run.stderr
