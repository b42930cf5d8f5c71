"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.weights
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))
def test_snippet(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {})
    assert "prompt_tokens" in capsys.readouterr().out


def test_the_tree_names_every_module() -> None:
    text = README.read_text(encoding="utf-8")
    package = README.parent / "kvcomm_agents"
    missing = [path.name for path in package.glob("*.py") if path.name not in text and not path.name.startswith("_")]
    allowed = {"errors.py", "config.py", "request.py", "anchorfile.py"}
    assert set(missing) <= allowed
