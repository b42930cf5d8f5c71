"""The examples run as they are, and what is kept in them is clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from notebook_runs import EXAMPLES, NOTEBOOKS, execute, faults

PACKAGES = [str(EXAMPLES.parent), str(EXAMPLES.parent / "integrations")]


def test_there_is_something_to_test() -> None:
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs_are_whole_and_clean(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not faults(notebook)


@pytest.mark.parametrize("output", ["/home/ada/x.py", "C:\\\\Users\\\\ada", "snapshots/0123abcd"])
def test_traces_of_a_machine_are_seen(output: str) -> None:
    v4 = pytest.importorskip("nbformat.v4")
    cell = v4.new_code_cell(outputs=[v4.new_output("stream", text=f"saved {output}\n")])
    assert any("of this machine" in fault for fault in faults(v4.new_notebook(cells=[cell])))


@pytest.mark.weights
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_what_it_claims(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(PACKAGES))
    notebook: Any = execute(path)  # raises if an assertion in it fails
    assert not faults(notebook)


@pytest.mark.weights
def test_swap_in() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)}
    run = subprocess.run(
        [sys.executable, EXAMPLES / "swap_in.py"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert run.returncode == 0, run.stderr
    counts = [line.split() for line in run.stdout.splitlines() if "prompt tokens:" in line]
    assert len(counts) == 6
    exact = [int(words[3]) for words in counts]
    assert exact[:2] == [0, 0]
    assert all(count > 0 for count in exact[2:])


def test_hidden_tests_judge_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports and helpers before the function count as given, and a wrong answer is found out."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    team = pytest.importorskip("humaneval_team")
    row = {
        "task_id": "Double/0",
        "prompt": 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Each twice."""\n',
        "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n",
    }
    signature = "def double(xs: List[int]) -> List[int]:\n    return"
    assert team.solved(row, f"```python\n{signature} [2 * x for x in xs]\n```")
    assert not team.solved(row, f"```python\n{signature} xs\n```")
    assert not team.solved(row, "I do not know.")
