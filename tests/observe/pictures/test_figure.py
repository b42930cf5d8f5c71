"""The notebook's figure draws every lane and every run."""

from __future__ import annotations

from io import BytesIO

import pytest

from kvcomm_agents.errors import MissingExtraError
from kvcomm_agents.observe.report_file import Recorded


def test_every_lane_run_and_number_is_drawn(recorded: Recorded) -> None:
    pytest.importorskip("matplotlib")
    from kvcomm_agents.observe.pictures import draw

    picture = draw(recorded.requests, "a title")
    upper, lower = picture.figure.axes
    assert [label.get_text() for label in upper.get_yticklabels()] == ["planner", "coder", "judge"] or [
        label.get_text() for label in upper.get_yticklabels()
    ] == ["planner", "planner", "coder", "judge"]
    bars = [patch for patch in lower.patches if patch.get_width() > 0]
    assert len(bars) == sum(len(report.runs) for report in recorded.requests)
    assert sum(bar.get_width() for bar in bars) == sum(report.prompt_tokens for report in recorded.requests)
    assert picture._repr_png_().startswith(b"\x89PNG")
    out = BytesIO()
    picture.save(out, format="svg")
    assert b"<svg" in out.getvalue()


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from kvcomm_agents.observe.pictures import draw

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"kvcomm-agents\[plot\]"):
        draw([])
