"""`kvcomm bench grid`: mean speedup of three agents by lengths of instructions and answers, as the paper's Table 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from .calls import Protocol
from .figures import speedups
from .growth import corrected_run
from .options import GridOptions, numbers
from .session import Report, Session, Table, title

AGENTS = 3
PREFIXES = (64, 128, 256, 512, 1024)
PAPER = {
    128: (2.24, 2.31, 2.56, 3.07, 4.45),
    256: (2.50, 2.51, 2.83, 3.44, 4.75),
    512: (3.05, 3.18, 3.49, 4.09, 5.34),
    1024: (4.40, 4.48, 4.75, 5.35, 6.72),
}
"""By output, along `PREFIXES`: over dense without prefix caching (H100, Llama-3.1-8B)."""


def measure(options: GridOptions, session: Session) -> Report:
    """Every cell from a cold start, everything placed that can be.

    The guard would need more requests than a cell is worth; what full reuse costs in divergence is told
    beside each.
    """
    prefixes, outputs = numbers(options.prefixes, PREFIXES), numbers(options.outputs, tuple(PAPER))
    cells, lengths = [], [(prefix, output) for output in outputs for prefix in prefixes]
    for done, (prefix, output) in enumerate(lengths, 1):
        protocol = Protocol(AGENTS, prefix, options.question, output)
        run = corrected_run(session.loaded, protocol, options.data)
        paper = dict(zip(PREFIXES, PAPER.get(output, ()), strict=False))
        cells.append(
            {
                "prefix": prefix,
                "output": output,
                "question": options.question,
                "agents": AGENTS,
                **{f"speedup_over_{other}": speedups(run, "corrected", other) for other in ("dense", "prefix")},
                "kl_mean": fmean(row.kl for row in run.of("corrected") if row.kl is not None),
                "paper": paper.get(prefix),
            }
        )
        session.keep({**session.described, "cells": cells})
        session.tell("cells", done, len(lengths))
    return {**session.described, "cells": cells}


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """A row a cell."""
    columns = {
        "prefix": "prefix",
        "output": "output",
        "over dense": "speedup_over_dense:.2f",
        "paper": "paper:.2f",
        "over prefix cache": "speedup_over_prefix:.2f",
        "KL": "kl_mean:.4f",
    }
    yield Table(title(report, f"times faster, mean of {AGENTS} agents, everything placed"), columns, report["cells"])
