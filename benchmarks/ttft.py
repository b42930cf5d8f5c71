"""`kvcomm bench ttft`: time to first token, agent by agent, of every way of serving the same calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvcomm_agents.errors import ConfigError
from kvcomm_agents.planning.auditor import SCORED

from . import peers
from .calls import Protocol, protocol_calls
from .figures import HIDDEN, PARTS, figures_of, measure_floors
from .logs import replay_calls
from .options import TtftOptions, names
from .runs import serve_all
from .served import NAMES, make_column
from .session import Report, Session, Table, title

PAPER = (1.11, 5.06, 6.14, 6.85, 7.82)
"""Table 2 of the KVCOMM paper: TTFT of its five agents over dense without prefix caching (H100, Llama-3.1-8B)."""


def measure(options: TtftOptions, session: Session) -> Report:
    """Every column on the same calls.

    Raises:
        ConfigError: there is no such column, peer or log, or too little text.
    """
    wanted = names(options.columns, NAMES, "column")
    others = () if options.peers == "none" else names(options.peers, peers.NAMES, "peer")
    loaded, cold = session.loaded, options.cold
    protocol = Protocol(options.agents, options.prefix, options.question, options.output)
    if options.replay:
        cold, logs = 0, replay_calls(loaded, options.replay, options.logs, options.data, options.limit)
        calls = [log for log in logs if log]
        what = f"{len(calls)} logs of {options.replay}, contexts up to {options.limit} tokens"
    else:
        calls, what = protocol_calls(loaded, protocol, cold + options.steady, options.data), str(protocol)
    if not calls:
        raise ConfigError(f"no log fits into {options.limit} tokens; raise --limit")
    longest = max(len(call.ids) + len(call.output) for request in calls for call in request)
    setting = peers.PeerSetting(
        options.llama_server, options.gguf, options.vllm_python, longest + 1, max(options.agents, 1)
    )
    started, skipped = peers.start_peers(others, loaded, setting)
    columns = [*(make_column(name, loaded) for name in wanted), *started]
    try:
        run = serve_all(columns, calls, cold, tell=session.tell)
        figures = figures_of(loaded, run, measure_floors(loaded, run))
    finally:
        for column in columns:
            column.close()
    steady = len(calls) - cold
    described = {"what": what, "cold": cold, "steady": steady, "replay": options.replay or None, "positions": SCORED}
    report = {**session.described, "setting": described, **figures, "skipped": {**skipped, **run.lost}}
    return report | ({"paper_speedup_over_dense": PAPER} if protocol == Protocol() and not options.replay else {})


def tables(report: Mapping[str, Any]) -> Iterator[Table | str]:
    """TTFT and speedups per agent, totals per column, hidden work, and what was skipped."""
    columns, setting, agents = list(report["columns"]), report["setting"], report["agents"]
    head = title(report, f"{report['device']}, {report['threads']} threads: {setting['what']}")
    if not setting["replay"]:
        times = {name: f"ttft_s/{name}:ms" for name in columns}
        yield Table(f"{head}\nmedian ms to the first token", {"agent": "agent", "prompt": "prompt", **times}, agents)
        for over in (name for name in ("dense", "prefix") if name in columns):
            ratios = {name: f"speedup/{over}/{name}:.2f" for name in columns if name not in ("generate", over)}
            yield Table(f"times faster than {over}", {"agent": "agent", **ratios}, agents)
    totals = {
        "column": ":key",
        "calls": "calls",
        "sum s": "ttft_s_total:.2f",
        "median ms": "ttft_s_median:ms",
        "calls reused": "calls_reused:.0%",
        "computed": "tokens_computed:.1%",
        "KL": "kl_mean:.4f",
        "KL max": "kl_max:.4f",
    }
    yield Table(f"{head}\nall steady calls", totals, report["columns"])
    # Where the time of calls goes that placed corrected KV, beside what is the least here.
    placing = {f"{one['agent']}, {name}": (one, name) for one in agents for name in one["floor"]}
    parts = {part.removesuffix("_s"): f"parts/{part}:ms" for part in PARTS}
    rows = {
        who: {"computed": one["computed"][name], "parts": one["parts_s"][name], "floor": one["floor"][name]}
        for who, (one, name) in placing.items()
    }
    least = {"floor": "floor/total_s:ms", "attended": "floor/attended_s:ms"}
    text = "ms; floor: a forward pass of what is computed and a copy of what is placed; attended: attention too"
    yield Table(text, {"": ":key", "computed": "computed:.0f", **parts, **least}, rows)
    # What first tokens did not wait for; and the speedups without it, with it, and of the whole run.
    charged = {f"{name}, {phase}": one for name, phases in report["charged"].items() for phase, one in phases.items()}
    hidden = {part.removesuffix("_s"): f"hidden_s/{part}:.2f" for part in HIDDEN}
    yield Table("seconds", {"": ":key", "first tokens": "ttft_s:.2f", **hidden, "passes": "passes"}, charged)
    kinds = {"TTFT": "", "charged": "_charged", "run": "_run"}
    over_all = {
        f"{kind} / {other}": f"speedup{infix}_over_{other}:.2f"
        for other in ("dense", "prefix")
        for kind, infix in kinds.items()
    }
    yield Table("times faster: TTFT, with hidden work charged, and the whole run", {"": ":key", **over_all}, charged)
    yield from (f"{name} was skipped: {why}" for name, why in report["skipped"].items())
