"""`kvcomm bench grid`: mean speedup of three agents by lengths of instructions and answers, as the paper's Table 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvcomm_agents.models.loading import LoadedModel

from .calls import Protocol, protocol_calls
from .console import Tell, quietly
from .ours import make_column
from .ttft import run

PREFIXES = (64, 128, 256, 512, 1024)
OUTPUTS = (128, 256, 512, 1024)
PAPER = {
    128: (2.24, 2.31, 2.56, 3.07, 4.45),
    256: (2.50, 2.51, 2.83, 3.44, 4.75),
    512: (3.05, 3.18, 3.49, 4.09, 5.34),
    1024: (4.40, 4.48, 4.75, 5.35, 6.72),
}
"""By output, along `PREFIXES`: over dense without prefix caching (H100, Llama-3.1-8B)."""


def measure_grid(
    loaded: LoadedModel,
    prefixes: Sequence[int] = PREFIXES,
    outputs: Sequence[int] = OUTPUTS,
    question: int = 512,
    agents: int = 3,
    folder: Path | None = None,
    tell: Tell = quietly,
) -> list[dict[str, Any]]:
    """Every cell from a cold start: three requests to learn from, two measured; everything placed that can be.

    The guard would need more requests than a cell is worth; what full reuse costs in divergence is told
    beside each.

    Returns:
        A row per cell: mean speedup of its calls over dense and over the prefix cache, and their mean KL.
    """
    found = []
    cells = [(prefix, output) for output in outputs for prefix in prefixes]
    for done, (prefix, output) in enumerate(cells, 1):
        protocol = Protocol(agents, prefix, question, output)
        columns = [make_column(name, loaded) for name in ("dense", "prefix", "corrected")]
        served = run(columns, protocol_calls(loaded, protocol, 5, folder), cold=3)
        ours = [row for row in served.steady if row.column == "corrected"]
        kl = [row.kl for row in ours if row.kl is not None]
        found.append(
            {
                "prefix": prefix,
                "output": output,
                "question": question,
                "agents": agents,
                **{
                    f"speedup_over_{other}": sum(
                        next(r.first.ttft_s for r in served.steady if r.call is row.call and r.column == other)
                        / row.first.ttft_s
                        for row in ours
                    )
                    / len(ours)
                    for other in ("dense", "prefix")
                },
                "kl_mean": sum(kl) / len(kl),
                "paper": PAPER[output][PREFIXES.index(prefix)] if output in PAPER and prefix in PREFIXES else None,
            }
        )
        for one in columns:
            one.close()
        tell("cells", done, len(cells))
    return found
