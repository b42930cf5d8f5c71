"""Reports on disk: what was written is read again, whatever happened to the end of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcomm_agents import EngineConfig, Message, Request, RequestReport, ReuseConfig, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import ConfigError, ReportError
from kvcomm_agents.observe.report import AuditReport, TokenRun
from kvcomm_agents.observe.report_file import ReportFile, read_reports

REPORT = RequestReport("a", 5, 2, 3, runs=(TokenRun(0, 3, "exact", "prefix", "ü"), TokenRun(3, 5, "computed")))
AUDIT = AuditReport("a", "placed", 0.1, 0.2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "reports.jsonl"
    observer = ReportFile(path)
    observer.on_request(REPORT)
    observer.on_audit(AUDIT)
    observer.on_request(REPORT)
    observer.close()
    return path


def test_round_trip(file: Path) -> None:
    found = read_reports(file)
    assert found.requests == (REPORT, REPORT)
    assert found.audits == (AUDIT,)


def test_a_file_cut_off_anywhere_loses_only_its_last_line(file: Path) -> None:
    content = file.read_bytes()
    ends = [at for at in range(len(content)) if content[at : at + 1] == b"\n"]
    for length in range(0, len(content), 5):
        file.write_bytes(content[:length])
        found = read_reports(file)
        whole = sum(end <= length for end in ends)  # a last line is whole without its newline
        assert len(found.requests) + len(found.audits) == whole


def test_what_is_no_report_is_named(file: Path) -> None:
    with file.open("ab") as out:
        out.write(b'{"kind": "other"}\n')
    with pytest.raises(ReportError, match="line 4"):
        read_reports(file)
    with pytest.raises(ReportError, match="nowhere"):
        read_reports(file.parent / "nowhere")
    with pytest.raises(ConfigError, match="nowhere"):
        ReportFile(file.parent / "nowhere" / "x")


def test_an_engine_writes_what_it_reports(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    monkeypatch.setenv("KVCOMM_REPORT_FILE", str(path))
    assert EngineConfig.from_env().report_file == str(path)
    engine = Engine(tiny("llama"), EngineConfig(report_file=str(path), reuse=ReuseConfig(mode="exact")))
    for _ in range(2):
        engine.generate(Request((Message("user", "hello"),), SamplingParams(max_tokens=3), agent="a"))
    assert read_reports(path).requests == engine.reports
    engine.close()
