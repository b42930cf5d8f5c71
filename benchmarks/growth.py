"""`kvcomm bench growth`: time to first token, match time and memory as contexts, agents and known spans grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from kvcomm_agents.models.loading import LoadedModel

from .calls import Protocol, protocol_calls
from .hitpath import hits
from .options import GrowthOptions, names
from .runs import Run, serve_all
from .served import make_column
from .session import Report, Session, Table, title

SIZES = {
    "spans": (10, 100, 1_000, 10_000, 100_000),
    "context": (512, 1024, 2048, 4096, 8000),  # the prompt of 8K leaves room for its answer in a context of 8192
    "agents": (2, 4, 8, 16),
}
LENGTHS = (64, 128, 48)  # of instructions, question and answers, where agents grow
PROMPT, KNOWN, ROUNDS = 1024, 10, 3  # tokens where spans grow, spans where the prompt grows, and timed rounds
_TIMES = ("match_s", "correct_s", "assemble_s", "forward_s", "dense_s")


def measure(options: GrowthOptions, session: Session) -> Report:
    """By kind and size: seconds of a hit (`ttft_s`) and of a dense prefill, and bytes held.

    Those are of spans and maps as the context grows, of the index alone as known spans do, and of all that was
    learned and stored as agents do.
    """
    report = dict(session.described)
    for kind in names(options.kinds, tuple(SIZES), "kind"):
        report[kind] = {}
        for done, size in enumerate(SIZES[kind], 1):
            if kind == "agents":
                report[kind][str(size)] = _team(session.loaded, size, options.data)
            elif kind == "context":
                report[kind][str(size)] = _hit(session.loaded, size, KNOWN, "held_bytes")
            else:
                report[kind][str(size)] = _hit(session.loaded, PROMPT, size, "index_bytes")
            session.keep(report)
            session.tell(kind, done, len(SIZES[kind]))
    return report


def _hit(loaded: LoadedModel, length: int, known: int, held: str) -> dict[str, float]:
    figures = hits(loaded, (length,), known, ROUNDS)
    row = figures["lengths"][str(length)]
    ttft = row["match_s"] + row["assemble_s"] + row["forward_s"]
    return {**{name: row[name] for name in _TIMES}, "ttft_s": ttft, "held_bytes": float(figures[held])}


def _team(loaded: LoadedModel, agents: int, folder: Path | None) -> dict[str, float]:
    """The last of so many fully connected agents, everything placed that can be, after three requests."""
    run = corrected_run(loaded, Protocol(agents, *LENGTHS), folder)
    last = {name: [row for row in run.of(name) if row.call.agent == f"agent {agents}"] for name in run.held}
    ttft = {name: median(row.served.ttft_s for row in rows) for name, rows in last.items()}
    ours = last["corrected"]
    return {
        "dense_s": ttft["dense"],
        "prefix_s": ttft["prefix"],
        "ttft_s": ttft["corrected"],
        "match_s": median(row.served.match_s for row in ours),
        "prompt": float(len(ours[0].call.ids)),
        "kl": fmean(row.kl or 0.0 for row in ours),
        "held_bytes": float(run.held["corrected"]),
    }


def corrected_run(loaded: LoadedModel, protocol: Protocol, folder: Path | None) -> Run:
    """Everything placed that can be, beside dense and an exact prefix cache; three requests to learn from, two more."""
    columns = [make_column(name, loaded) for name in ("dense", "prefix", "corrected")]
    try:
        return serve_all(columns, protocol_calls(loaded, protocol, 5, folder), cold=3)
    finally:
        for column in columns:
            column.close()


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """One of each kind."""
    columns = {
        "dense ms": "dense_s:ms1",
        "prefix ms": "prefix_s:ms1",
        "hit ms": "ttft_s:ms1",
        "match ms": "match_s:ms1",
    }
    for kind in SIZES:
        if kind in report:
            shown = {kind: ":key", **columns, "KL": "kl:.4f", "held bytes": "held_bytes:.3g"}
            yield Table(title(report, kind), shown, report[kind])
