"""Reports on disk: what was written is read again, whatever happened to the end of the file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from kvcomm_agents import EngineConfig, Message, Request, RequestReport, ReuseConfig, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import ConfigError, ReportError
from kvcomm_agents.observe.report import AuditReport, TokenRun
from kvcomm_agents.observe.report_file import ReportFile, read_reports

REPORT = RequestReport(
    "a", 5, 2, 3, idle_s=0.5, runs=(TokenRun(0, 3, "exact", "prefix", "ü"), TokenRun(3, 5, "computed"))
)
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


def test_a_disk_that_was_full_for_a_while_loses_one_line(tmp_path: Path) -> None:
    observer = ReportFile(tmp_path / "reports.jsonl")
    observer.on_request(REPORT)
    file, room = observer._file, [100, 0]

    class Full:
        def write(self, line: bytes) -> int:
            if not room:
                return file.write(line) or 0
            if left := room.pop(0):
                return file.write(line[:left]) or 0
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            file.close()

    observer._file = Full()  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(OSError, match=r"part|space"):
            observer.on_request(REPORT)
    observer.on_audit(AUDIT)
    observer.on_request(REPORT)
    observer.close()
    found = read_reports(observer.path)
    assert found.requests == (REPORT, REPORT)
    assert found.audits == (AUDIT,)


def test_what_an_earlier_version_wrote_is_read(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for field in ("idle_s", "reason", "runs"):
        lines[0].pop(field)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_reports(file).requests == (dataclasses.replace(REPORT, runs=(), idle_s=0.0), REPORT)


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
