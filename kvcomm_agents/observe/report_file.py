"""Reports as a file of JSON lines, one request or audit each: what `kvcomm report` draws."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ReportError
from ..log import get_logger
from .report import AuditReport, RequestReport

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a file holds, oldest first."""

    requests: tuple[RequestReport, ...] = ()
    audits: tuple[AuditReport, ...] = ()


class ReportFile:
    """An observer that appends to a file. Several processes may share one: a line is one write.

    Args:
        path: made if missing; its folder must be there.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self._cut = False  # the last line is not whole
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"reports cannot be written to {self.path}: {error}") from error

    def on_request(self, report: RequestReport) -> None:
        """Append it."""
        self._append({"kind": "request", **report.as_dict(runs=True)})

    def on_audit(self, report: AuditReport) -> None:
        """Append it."""
        self._append({"kind": "audit", **asdict(report)})

    def close(self) -> None:
        """No more lines."""
        self._file.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        line = b"\n" * self._cut + json.dumps(record, ensure_ascii=False).encode() + b"\n"
        written = self._file.write(line) or 0
        self._cut = written < len(line) if written else self._cut
        if written < len(line):
            raise OSError(errno.ENOSPC, "a report was written in part; the disk may be full", str(self.path))


def read_reports(path: str | os.PathLike[str]) -> Recorded:
    """Everything in a file. Lines that were cut off, by a killed process or a full disk, are left out.

    Raises:
        ReportError: it cannot be read, or a line holds no report; names the line.
    """
    requests, audits = list[RequestReport](), list[AuditReport]()
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            logger.warning("%s, line %d, was cut off; it is left out", path, number)
            continue
        try:
            kind = record.pop("kind")
            if kind == "request":
                requests.append(RequestReport.from_dict(record))
            elif kind == "audit":
                audits.append(AuditReport(**record))
            else:
                raise ValueError(f"kind {kind!r} is neither request nor audit")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ReportError(f"{path}, line {number}, is no report: {error}") from error
    return Recorded(tuple(requests), tuple(audits))
