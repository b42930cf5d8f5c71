"""Figures of a run: per agent, per column, and with all hidden work charged."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.models.loading import LoadedModel

from .columns import Column
from .console import model_name
from .floors import Floors
from .machine import machine, peak_bytes
from .ttft import HIDDEN, POSITIONS, Row, Run


def report(
    loaded: LoadedModel,
    columns: Sequence[Column],
    found: Run,
    setting: dict[str, Any],
    positions: int = POSITIONS,
    floors: Floors | None = None,
) -> dict[str, Any]:
    """All figures of a run, in plain JSON types; rows at the end."""
    names = [column.name for column in columns]
    agents = list(dict.fromkeys(row.call.agent for row in found.steady))
    return {
        "model": model_name(loaded),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        **machine(loaded.model.device),
        "setting": {**setting, "positions": positions},
        "columns": {name: column_summary([row for row in found.steady if row.column == name]) for name in names},
        "agents": [_agent(agent, names, found.steady, floors) for agent in agents],
        "charged": {name: charged(name, found, floors) for name in names if name != "dense"},
        "memory": {
            "held_bytes_most": found.held,
            "process_peak_bytes": peak_bytes(loaded.model.device),
            "weights_bytes": sum(one.nbytes for one in loaded.model.parameters()),
        },
        "floor": floors.as_dict() if floors else None,
        "cold": [row.as_dict() for row in found.cold],
        "steady": [row.as_dict() for row in found.steady],
    }


def column_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """One column over all its steady calls: seconds, shares of calls and of tokens that were reused, divergence."""
    prompt = sum(len(row.call.ids) for row in rows)
    kl = [row.kl for row in rows if row.kl is not None]
    return {
        "calls": len(rows),
        "ttft_s_total": sum(row.first.ttft_s for row in rows),
        "cpu_s_total": sum(row.first.cpu_s for row in rows),
        "ttft_s_median": median(row.first.ttft_s for row in rows) if rows else None,
        "calls_reused": sum(row.first.corrected > 0 for row in rows) / max(1, len(rows)),
        "tokens_computed": sum(row.first.computed for row in rows) / max(1, prompt),
        "tokens_exact": sum(row.first.exact for row in rows) / max(1, prompt),
        "tokens_corrected": sum(row.first.corrected for row in rows) / max(1, prompt),
        "kl_mean": sum(kl) / len(kl) if kl else None,
        "kl_max": max(kl) if kl else None,
        "rungs": {rung: sum(row.first.rung == rung for row in rows) for rung in sorted({r.first.rung for r in rows})},
    }


def _agent(agent: str, names: Sequence[str], rows: Sequence[Row], floors: Floors | None) -> dict[str, Any]:
    mine = {name: [row for row in rows if row.call.agent == agent and row.column == name] for name in names}
    ttft = {name: median(row.first.ttft_s for row in found) for name, found in mine.items() if found}
    parts = ("match_s", "correct_s", "assemble_s", "forward_s", "other_s")
    shown: dict[str, Any] = {
        "agent": agent,
        "prompt": round(median(len(row.call.ids) for found in mine.values() for row in found)),
        "ttft_s": ttft,
        "speedup": {
            over: {name: ttft[over] / seconds for name, seconds in ttft.items()}
            for over in ("generate", "dense", "prefix")
            if over in ttft
        },
        "parts_s": {
            name: {part: median(getattr(row.first, part) for row in found) for part in parts}
            for name, found in mine.items()
            if found
        },
        "computed": {name: median(row.first.computed for row in found) for name, found in mine.items() if found},
        "kl": {
            name: sum(kl) / len(kl)
            for name, found in mine.items()
            if (kl := [row.kl for row in found if row.kl is not None])
        },
    }
    if floors is not None:
        limits = {name: floors.of(*_work(found)) for name, found in mine.items() if found}
        shown["floor"] = {name: limit for name, limit in limits.items() if limit is not None}
    return shown


def charged(name: str, found: Run, floors: Floors | None) -> dict[str, Any]:
    """A column's whole run beside dense and the exact prefix cache, hidden work listed and charged.

    In the cold phase the others were not run: their medians of the steady phase stand in, call by
    call, since lengths are the same. `speedup` is of prompts alone, `speedup_charged` with hidden
    work, `speedup_run` with the decoding of the answers too, at the measured step.
    """
    phases: dict[str, Any] = {}
    for phase, rows in (("cold", found.cold), ("steady", found.steady), ("all", [*found.cold, *found.steady])):
        mine = [row for row in rows if row.column == name]
        if not mine:
            continue
        ttft = sum(row.first.ttft_s for row in mine)
        hidden = {part: sum(getattr(row.rest, part) for row in mine) for part in HIDDEN}
        all_hidden = sum(hidden.values())
        decode = floors.decode_s * sum(len(row.call.output) for row in mine) if floors else 0.0
        one: dict[str, Any] = {
            "calls": len(mine),
            "ttft_s": ttft,
            "hidden_s": hidden,
            "passes": sum(row.rest.passes for row in mine),
            "decode_s": decode,
        }
        for other in ("dense", "prefix"):
            theirs = _others(other, mine, found.steady)
            if theirs is None or other == name:
                continue
            one[f"{other}_ttft_s"] = theirs
            one[f"speedup_over_{other}"] = theirs / ttft
            one[f"speedup_charged_over_{other}"] = theirs / (ttft + all_hidden)
            one[f"speedup_run_over_{other}"] = (theirs + decode) / (ttft + all_hidden + decode)
        phases[phase] = one
    return phases


def _others(name: str, rows: Sequence[Row], steady: Sequence[Row]) -> float | None:
    """Seconds that another column took, or would have taken, for the same calls."""
    known = {id(row.call): row.first.ttft_s for row in steady if row.column == name}
    if not known:
        return None
    by_agent: dict[str, list[float]] = {}
    for row in steady:
        if row.column == name:
            by_agent.setdefault(row.call.agent, []).append(row.first.ttft_s)
    return sum(known.get(id(row.call)) or median(by_agent[row.call.agent]) for row in rows)


def measure_floors(loaded: LoadedModel, found: Run) -> Floors:
    """Floors for what was computed and placed at each agent, by the columns that ever placed corrected KV."""
    placing = {row.column for row in found.steady if row.first.corrected}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found.steady:
        if row.column in placing:
            groups.setdefault((row.call.agent, row.column), []).append(row)
    longest = max((row.call.ids for row in found.steady), key=len)
    return Floors.measure(Runner(loaded.model), longest, [_work(group) for group in groups.values()])


def _work(rows: Sequence[Row]) -> tuple[int, int]:
    """Tokens computed and placed by a call, in the middle of several."""
    computed = round(median(row.first.computed for row in rows))
    return computed, round(median(row.first.exact + row.first.corrected for row in rows))
