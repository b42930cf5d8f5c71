"""What docs/langchain.md shows runs as it stands, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "langchain.md"


@pytest.mark.weights
def test_snippets(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance", reason="needs the tools extra")
    names: dict[str, Any] = {"__name__": "docs"}  # annotations in a snippet are looked up in its module
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(code, PAGE.name, "exec"), names)
    names["watch"].close()
    said = capsys.readouterr().out
    for word in ("cache_read", "prompt_tokens", "'name': 'add'", "capital=", "tenant-a 1 writer"):
        assert word in said
