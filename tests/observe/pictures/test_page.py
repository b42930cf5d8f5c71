"""The page: self-contained, escaped, legible in both schemes, and a browser draws it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvcomm_agents.entrypoints.cli.app import app
from kvcomm_agents.observe.pictures import report_page
from kvcomm_agents.observe.report_file import Recorded, ReportFile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write(recorded: Recorded, path: Path) -> Path:
    file = ReportFile(path)
    for report in recorded.requests:
        file.on_request(report)
    for audit in recorded.audits:
        file.on_audit(audit)
    file.close()
    return path


def test_nothing_is_fetched_and_nothing_runs(recorded: Recorded) -> None:
    page = report_page(recorded)
    assert not re.search(r"<script|src=|@import|url\(|https?:", page)
    assert "&lt;script&gt;" in page, "an error's text is shown, not run"


def test_every_call_run_and_figure_is_there(recorded: Recorded) -> None:
    page = report_page(recorded)
    for number, report in enumerate(recorded.requests, 1):
        assert page.count(f'id="call-{number}"') == page.count(f'href="#call-{number}"') == 1
        for run in report.runs:
            assert run.describe().replace("'", "&#39;") in page
    shares = [float(x) for x in re.findall(r'class="(?:exact|corrected|computed)" style="width: ([\d.]+)%"><u', page)]
    assert sum(shares[:3]) == pytest.approx(100, abs=0.01)
    for words in ("0.0456 (1)", "0.0123", "some/model", "s idle", "(1 failed)"):
        assert words in page


def test_only_the_last_calls_are_drawn_and_keep_their_numbers(recorded: Recorded) -> None:
    page = report_page(recorded, last=2)
    assert re.findall(r'id="call-(\d+)"', page) == ["4", "5"]
    assert "the last 2 of 5 calls" in page


def test_an_empty_file_makes_a_page() -> None:
    assert "0 calls" in report_page(Recorded())


def luminance(color: str) -> float:
    def linear(part: int) -> float:
        return part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(color[at : at + 2], 16)) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(recorded: Recorded, scheme: str) -> None:
    """WCAG AA: 4.5 to 1."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in report_page(recorded).split("@media")[:2]
    )
    colors = light if scheme == "light" else {**light, **dark}
    pairs = [(f"on-{kind}", kind) for kind in ("exact", "corrected", "computed")]
    pairs += [("ink", "paper"), ("soft", "paper"), ("failed", "paper")]
    for text, behind in pairs:
        assert contrast(colors[text], colors[behind]) >= 4.5, (scheme, text, behind)


def test_the_command(recorded: Recorded, tmp_path: Path) -> None:
    file = write(recorded, tmp_path / "reports.jsonl")
    done = CliRunner().invoke(app, ["report", str(file)])
    assert done.exit_code == 0
    assert "5 calls" in done.output
    assert "<h1>reports</h1>" in (tmp_path / "reports.html").read_text()
    page = tmp_path / "one.html"
    done = CliRunner().invoke(app, ["report", str(file), "-o", str(page), "--agent", "coder"])
    assert re.findall(r"<b>\d+ · (\w+)</b>", page.read_text()) == ["coder", "coder"]
    for arguments in (["--agent", "nobody"], ["-o", str(tmp_path / "nowhere" / "x.html")]):
        done = CliRunner().invoke(app, ["report", str(file), *arguments])
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it(recorded: Recorded, tmp_path: Path, scheme: str) -> None:
    page, shot = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(report_page(recorded), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/profile"]
    flags += [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", "--window-size=1180,1500"]
    run = [str(CHROMIUM), *flags, f"--screenshot={shot}", page.as_uri()]
    subprocess.run(run, check=True, capture_output=True, timeout=60)
    image = pytest.importorskip("PIL.Image").open(shot).convert("RGB")
    paper = (20, 23, 27) if scheme == "dark" else (255, 255, 255)
    assert image.getpixel((3, 3)) == paper
    seen = {color for _, color in image.getcolors(1 << 24)}
    drawn = {"dark": [(88, 166, 224), (239, 166, 78), (107, 117, 128)]}.get(
        scheme, [(47, 120, 183), (232, 151, 58), (152, 162, 173)]
    )
    assert set(drawn) <= seen, "exact, corrected and computed runs are all there"
