"""What docs/autogen.md shows runs as it stands, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from faces import FACES

PAGE = Path(__file__).parents[2] / "docs" / "autogen.md"


@pytest.mark.weights
def test_snippets(capsys: pytest.CaptureFixture[str]) -> None:
    for face in FACES:
        pytest.importorskip(face.framework, reason=f"{face.package} names the extra that brings it")
    names: dict[str, Any] = {"__name__": "docs"}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(code, PAGE.name, "exec"), names)
    said = capsys.readouterr().out
    for word in ("'user', 'writer', 'editor'", "prompt tokens", "cache_read_input_token", " prompt_tokens"):
        assert word in said
