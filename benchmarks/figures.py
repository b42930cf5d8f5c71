"""Figures of a run: per agent, per column, and with all hidden work charged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import torch

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.models.loading import LoadedModel

from .floors import Floors
from .runs import Row, Run

HIDDEN = ("donors_s", "prepare_s", "audit_s", "learn_s")
PARTS = ("match_s", "correct_s", "assemble_s", "forward_s", "other_s")


def figures_of(loaded: LoadedModel, run: Run, floors: Floors) -> dict[str, Any]:
    """All figures of a run, in plain JSON types; rows at the end."""
    names = list(run.held)
    agents = dict.fromkeys(row.call.agent for row in run.steady)
    return {
        "columns": {name: _column(run.of(name)) for name in names},
        "agents": [_agent(agent, names, run.steady, floors) for agent in agents],
        "charged": {name: _charged(name, run, floors) for name in names if name != "dense"},
        "memory": {
            "held_bytes_most": run.held,
            "process_peak_bytes": _peak_bytes(loaded.model.device),
            "weights_bytes": sum(weight.nbytes for weight in loaded.model.parameters()),
        },
        "floor": floors.as_dict(),
        "cold": [row.as_dict() for row in run.cold],
        "steady": [row.as_dict() for row in run.steady],
    }


def measure_floors(loaded: LoadedModel, run: Run) -> Floors:
    """Floors for what was computed and placed at each agent, by the columns that ever placed corrected KV."""
    placing = {row.column for row in run.steady if row.served.corrected}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in run.steady:
        if row.column in placing:
            groups.setdefault((row.call.agent, row.column), []).append(row)
    longest = max((row.call.ids for row in run.steady), key=len)
    return Floors.measure(Runner(loaded.model), longest, [_work(group) for group in groups.values()])


def speedups(run: Run, column: str, over: str) -> float:
    """Mean over a column's calls of how many times faster than another's its first token came."""
    others = {id(row.call): row.served.ttft_s for row in run.of(over)}
    return fmean(others[id(row.call)] / row.served.ttft_s for row in run.of(column))


def _work(rows: Sequence[Row]) -> tuple[int, int]:
    """Tokens computed and placed by a call, in the middle of several."""
    computed = round(median(row.served.computed for row in rows))
    return computed, round(median(row.served.exact + row.served.corrected for row in rows))


def _column(rows: Sequence[Row]) -> dict[str, Any]:
    """One column over all its steady calls: seconds, shares of calls and of tokens that were reused, divergence."""
    served = [row.served for row in rows]
    prompt = sum(len(row.call.ids) for row in rows)
    kl = [row.kl for row in rows if row.kl is not None]
    rungs = [one.rung for one in served]
    return {
        "calls": len(rows),
        "ttft_s_total": sum(one.ttft_s for one in served),
        "cpu_s_total": sum(one.cpu_s for one in served),
        "ttft_s_median": median(one.ttft_s for one in served),
        "calls_reused": sum(one.corrected > 0 for one in served) / len(rows),
        **{
            f"tokens_{kind}": sum(getattr(one, kind) for one in served) / prompt
            for kind in ("computed", "exact", "corrected")
        },
        "kl_mean": fmean(kl) if kl else None,
        "kl_max": max(kl) if kl else None,
        "rungs": {rung: rungs.count(rung) for rung in sorted(set(rungs))},
    }


def _agent(agent: str, names: Sequence[str], rows: Sequence[Row], floors: Floors) -> dict[str, Any]:
    here = [row for row in rows if row.call.agent == agent]
    mine = {name: own for name in names if (own := [row for row in here if row.column == name])}
    ttft = {name: median(row.served.ttft_s for row in own) for name, own in mine.items()}
    kl = {name: [row.kl for row in own if row.kl is not None] for name, own in mine.items()}
    limits = {name: floors.of(*_work(own)) for name, own in mine.items()}
    return {
        "agent": agent,
        "prompt": round(median(len(row.call.ids) for row in here)),
        "ttft_s": ttft,
        "speedup": {
            over: {name: ttft[over] / seconds for name, seconds in ttft.items()}
            for over in ("generate", "dense", "prefix")
            if over in ttft
        },
        "parts_s": {
            name: {part: median(getattr(row.served, part) for row in own) for part in PARTS}
            for name, own in mine.items()
        },
        "computed": {name: median(row.served.computed for row in own) for name, own in mine.items()},
        "kl": {name: fmean(values) for name, values in kl.items() if values},
        "floor": {name: limit for name, limit in limits.items() if limit is not None},
    }


def _charged(name: str, run: Run, floors: Floors) -> dict[str, Any]:
    """A column's whole run beside dense and the exact prefix cache, hidden work listed and charged.

    In the cold phase the others were not run: their medians of the steady phase stand in, call by
    call, since lengths are the same. `speedup` is of prompts alone, `speedup_charged` with hidden
    work, `speedup_run` with the decoding of the answers too, at the measured step.
    """
    phases: dict[str, Any] = {}
    for phase, rows in (("cold", run.cold), ("steady", run.steady), ("all", [*run.cold, *run.steady])):
        mine = [row for row in rows if row.column == name]
        if not mine:
            continue
        ttft = sum(row.served.ttft_s for row in mine)
        hidden = {part: sum(getattr(row.served, part) for row in mine) for part in HIDDEN}
        decode = floors.decode_s * sum(len(row.call.output) for row in mine)
        charged = ttft + sum(hidden.values())
        phases[phase] = {
            "calls": len(mine),
            "ttft_s": ttft,
            "hidden_s": hidden,
            "passes": sum(row.served.passes for row in mine),
            "decode_s": decode,
        }
        for other in ("dense", "prefix"):
            theirs = _others(run.of(other), mine)
            if theirs is not None and other != name:
                phases[phase] |= {
                    f"{other}_ttft_s": theirs,
                    f"speedup_over_{other}": theirs / ttft,
                    f"speedup_charged_over_{other}": theirs / charged,
                    f"speedup_run_over_{other}": (theirs + decode) / (charged + decode),
                }
    return phases


def _others(theirs: Sequence[Row], mine: Sequence[Row]) -> float | None:
    """Seconds that another column took, or would have taken, for the same calls."""
    known = {id(row.call): row.served.ttft_s for row in theirs}
    by_agent: dict[str, list[float]] = {}
    for row in theirs:
        by_agent.setdefault(row.call.agent, []).append(row.served.ttft_s)
    return sum(known.get(id(row.call)) or median(by_agent[row.call.agent]) for row in mine) if known else None


def _peak_bytes(device: torch.device) -> int:
    """The most memory this process has used so far: of the GPU if that is where the model is."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
