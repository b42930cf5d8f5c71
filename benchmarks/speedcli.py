"""`kvcomm bench ttft`: what it asks for, and how it shows what it found. Light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from kvcomm_agents.entrypoints.cli.console import DTypeName, Model, table
from kvcomm_agents.entrypoints.cli.terminal import plain_errors
from kvcomm_agents.errors import ConfigError

from .console import progress, writable, write
from .options import Count, Data, Device, Json, Plot, Shape, chosen, load

if TYPE_CHECKING:
    from .columns import Column

speed_app = typer.Typer()

Columns = Annotated[
    str, typer.Option(help="generate, dense, prefix, exact, guarded, corrected; all but the last if left out.")
]
PAPER = (1.11, 5.06, 6.14, 6.85, 7.82)
"""Table 2 of the KVCOMM paper: TTFT of its five agents over dense without prefix caching (H100, Llama-3.1-8B)."""


@speed_app.command()
def ttft(
    model: Model = "default",
    data: Data = None,
    dtype: DTypeName = "auto",
    device: Device = "auto",
    shape: Shape = "",
    agents: Count = 5,
    prefix: Annotated[int, typer.Option(min=1, help="Tokens of each agent's instructions.")] = 512,
    question: Annotated[int, typer.Option(min=1, help="Tokens of the question.")] = 1024,
    output: Annotated[int, typer.Option(min=1, help="Tokens of every answer.")] = 512,
    cold: Annotated[int, typer.Option(min=1, help="Requests to learn from, from a cold start.")] = 8,
    steady: Annotated[int, typer.Option(min=1, help="Requests measured after them, with every column.")] = 3,
    replay: Annotated[str, typer.Option(help="Play real logs instead: autogen or magentic.")] = "",
    logs: Annotated[int, typer.Option(min=1, help="With --replay: how many.")] = 6,
    limit: Annotated[int, typer.Option(min=16, help="With --replay: a log ends where a context is longer.")] = 4096,
    columns: Columns = "",
    peers: Annotated[str, typer.Option(help="llama.cpp, llama.cpp-reuse, vllm, by commas; all if left out.")] = "all",
    llama_server: Annotated[str | None, typer.Option(help="llama.cpp's server, if it is not on the path.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="The model as llama.cpp wants it.")] = None,
    vllm_python: Annotated[str | None, typer.Option(help="An interpreter that has vLLM.")] = None,
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Time to first token beside transformers, a prefix cache, llama.cpp and vLLM, on the same real text."""
    with plain_errors():
        from .calls import Protocol, longest, protocol_calls
        from .logs import replay_calls
        from .ours import NAMES, make_column
        from .peers import NAMES as PEERS
        from .peers import PeerSetting, start_peers
        from .speed import measure_floors, report
        from .speedplots import plot_ttft
        from .ttft import run

        writable(json_path, plot)
        loaded = load(model, dtype, device, shape)
        protocol = Protocol(agents, prefix, question, output)
        if replay:
            calls = [one for one in replay_calls(loaded, replay, logs, data, limit) if one]
            cold, what = 0, f"{len(calls)} logs of {replay}, contexts up to {limit} tokens"
        else:
            calls, what = protocol_calls(loaded, protocol, cold + steady, data), str(protocol)
        if not calls:
            raise ConfigError(f"no log fits into {limit} tokens; raise --limit")
        wanted = chosen(columns) or tuple(name for name in NAMES if name != "corrected")
        served = [make_column(name, loaded) for name in wanted]
        setting = PeerSetting(llama_server, gguf, vllm_python, longest(calls) + 1, max(agents, 1))
        others, skipped = start_peers({"all": PEERS, "none": ()}.get(peers, chosen(peers)), loaded, setting)
        every: list[Column] = [*served, *others]
        try:
            with progress() as tell:
                found = run(every, calls, cold, tell=tell)
            described = {"what": what, "cold": cold, "steady": len(calls) - cold, "replay": replay or None}
            kept = [column for column in every if column.name not in found.lost]
            figures = report(loaded, kept, found, described, floors=measure_floors(loaded, found))
        finally:
            for column in every:
                column.close()
        figures["skipped"] = {**skipped, **found.lost}
        if protocol == Protocol() and not replay:
            figures["paper_speedup_over_dense"] = PAPER
        write(figures, json_path)
        if plot is not None:
            plot_ttft(figures, plot)
        show(figures)


def show(figures: Mapping[str, Any]) -> None:
    """Tables: TTFT and speedups per agent, totals per column, hidden work, and what was skipped."""
    names = list(figures["columns"])
    head = f"{figures['model']}, {figures['dtype']}, {figures['device']}, {figures['threads']} threads"
    replayed = figures["setting"]["replay"]
    if not replayed:
        table(
            f"{head}: {figures['setting']['what']}\nmedian ms to the first token",
            ("agent", "prompt", *names),
            [
                (one["agent"], str(one["prompt"]), *(_ms(one["ttft_s"].get(name)) for name in names))
                for one in figures["agents"]
            ],
        )
        for over in ("dense", "prefix"):
            _speedups(figures, over, [name for name in names if name not in ("generate", over)])
    table(
        f"{head}: {figures['setting']['what']}" if replayed else "all steady calls",
        ("column", "calls", "sum s", "median ms", "calls reused", "computed", "KL", "KL max", "held MB"),
        [
            (
                name,
                str(one["calls"]),
                f"{one['ttft_s_total']:.2f}",
                _ms(one["ttft_s_median"]),
                f"{one['calls_reused']:.0%}",
                f"{one['tokens_computed']:.1%}",
                *("-" if one[key] is None else f"{one[key]:.4f}" for key in ("kl_mean", "kl_max")),
                f"{figures['memory']['held_bytes_most'].get(name, 0) / 1e6:.0f}",
            )
            for name, one in figures["columns"].items()
        ],
    )
    _parts(figures)
    _charged(figures)
    for name, why in figures["skipped"].items():
        Console().print(f"{name} was skipped: {escape(why)}", highlight=False)


def _speedups(figures: Mapping[str, Any], over: str, names: Sequence[str]) -> None:
    agents = figures["agents"]
    if not all(over in one["speedup"] for one in agents):
        return
    paper = figures.get("paper_speedup_over_dense", ()) if over == "dense" else ()
    rows = []
    for place, one in enumerate(agents):
        theirs = (f"{paper[place]:.2f}",) if paper else ()
        rows.append((one["agent"], *(_ratio(one["speedup"][over].get(name)) for name in names), *theirs))
    table(f"times faster than {over}", ("agent", *names, *(("paper",) if paper else ())), rows)


def _parts(figures: Mapping[str, Any]) -> None:
    """Where the time of calls goes that placed corrected KV, beside what is the least here."""
    rows, shown = [], list[str]()
    for one in figures["agents"]:
        for name, floor in one.get("floor", {}).items():
            ttft, attended, parts = one["ttft_s"][name], floor["attended_s"], one["parts_s"][name]
            shown = [part.removesuffix("_s") for part in parts]
            rows.append(
                (
                    f"{one['agent']}, {name}",
                    f"{one['computed'][name]:.0f}",
                    *map(_ms, parts.values()),
                    _ms(floor["total_s"]),
                    _ratio(ttft / floor["total_s"]),
                    _ms(attended),
                    _ratio(ttft / attended),
                )
            )
    if rows:
        title = "ms; floor: a forward pass of what is computed and a copy of what is placed; attended: attention too"
        table(title, ("", "computed", *shown, "floor", "over", "attended", "over"), rows)


def _charged(figures: Mapping[str, Any]) -> None:
    """What first tokens did not wait for; and the speedups without it, with it, and of the whole run."""
    seconds, ratios = [], []
    for name, phases in figures["charged"].items():
        for phase, one in phases.items():
            hidden = one["hidden_s"]
            if not sum(hidden.values()) or (len(phases) == 2 and phase == "all"):
                continue
            parts = (f"{hidden[part]:.2f}" for part in ("donors_s", "prepare_s", "audit_s", "learn_s"))
            seconds.append((f"{name}, {phase}", f"{one['ttft_s']:.2f}", *parts, str(one["passes"])))
            cells = (
                _ratio(one.get(f"speedup{kind}_over_{other}"))
                for other in ("dense", "prefix")
                for kind in ("", "_charged", "_run")
            )
            ratios.append((f"{name}, {phase}", *cells))
    over = [f"{kind} / {other}" for other in ("dense", "prefix") for kind in ("TTFT", "charged", "run")]
    table("seconds", ("", "first tokens", "donors", "prepare", "audits", "learn", "passes"), seconds)
    table("times faster: TTFT, with hidden work charged, and the whole run", ("", *over), ratios)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
