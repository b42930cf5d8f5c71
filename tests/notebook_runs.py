"""Runs the notebooks of `examples/`. As a script: keeps their outputs in them (`make notebooks`)."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
CELL_S = 300  # seconds that one cell may take
# Of a machine, not of the example: absolute paths and the folders of model caches.
MACHINE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|usr|opt|var|private)/|[A-Z]:\\|snapshots/[0-9a-f]{8}")


def execute(path: Path) -> Any:
    """The notebook, run from its first cell to its last in a fresh kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised, an assertion among them.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_S, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    # tqdm warns where ipywidgets is missing; no example draws a progress bar
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)  # times of this run
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)  # an address in memory
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def texts(notebook: Any) -> list[str]:
    """What the cells wrote, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]


def faults(notebook: Any) -> list[str]:
    """Why these outputs should not be kept: noise, traces of the machine, no picture at the end."""
    found = [f"of this machine: {text[:200]!r}" for text in texts(notebook) if MACHINE.search(text)]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    found += [f"noise: {output.text[:200]!r}" for output in outputs if output.get("name") == "stderr"]
    if not outputs or "image/png" not in outputs[-1].get("data", {}):
        found.append("it does not end in a picture")
    return found


def main() -> None:
    """Run all, or those named, and write them back."""
    import nbformat

    for path in [EXAMPLES / name for name in sys.argv[1:]] or NOTEBOOKS:
        print(f"running {path.name}", flush=True)  # noqa: T201
        notebook = execute(path)
        if found := faults(notebook):
            sys.exit(f"{path.name} is left as it was: " + "; ".join(found))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
