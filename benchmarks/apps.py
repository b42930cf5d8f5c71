"""`kvcomm bench apps`: what is found and placed in LangChain apps as they are, run after run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.observe.report import RequestReport

from .options import AppsOptions
from .session import Report, Session, Table, Tell, describe, title

_CORRECTED_RUNS = 3


@dataclass(frozen=True, slots=True)
class App:
    """An app for any chat model: `build(llm)` gives a graph or chain, and there is an input for each run."""

    name: str
    title: str
    build: Any
    inputs: Sequence[Any]


def load_app(file: Path) -> App:
    """An app from a Python file with `build(llm)`, an `INPUT`, and further inputs in `MORE`.

    Raises:
        ConfigError: the file is not there, needs a package that is not, or has no `build` or `INPUT`.
    """
    spec = importlib.util.spec_from_file_location(f"kvcomm_app_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ConfigError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        build, first = module.build, module.INPUT
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{file.name} is no app that can be measured here: {error}") from error
    heading = (module.__doc__ or "").strip().split("\n")[0]
    return App(file.stem, heading, build, (first, *getattr(module, "MORE", ())))


def measure(options: AppsOptions, session: Session) -> Report:
    """Every app in turn, on one model."""
    folders = [sorted(file.glob("[!_]*.py")) if file.is_dir() else [file] for file in options.files]
    apps = [load_app(file) for folder in folders for file in folder]
    report: Report = {"runs": options.runs, "max_tokens": options.max_tokens, "apps": {}}
    for app in apps:
        loaded, report["apps"][app.name] = measure_app(app, options, session.tell)
        report |= describe(loaded)
        session.keep(report)
    return report


def measure_app(app: App, options: AppsOptions, tell: Tell) -> tuple[LoadedModel, dict[str, Any]]:
    """Run an app several times on one model, in a namespace of its own, and count from its reports.

    Between two runs the engine is given the time to learn from the last one. Greedy. Tools are called
    where there are some, since a small model would not choose to. An app with fewer inputs than runs begins
    again with its first.

    Returns:
        The model; and by mode (with the guard's leave, and at most three runs placing all that can be) the counts
        of the first run, of all later ones, and of the last.
    """
    from langchain_kvcomm import ChatKVComm

    figures: dict[str, Any] = {"title": app.title}
    plan = {"auto": options.runs, "corrected": min(options.runs, _CORRECTED_RUNS)}
    done = 0
    for mode, count in plan.items():
        llm = ChatKVComm(
            model=options.model,
            dtype=options.dtype,  # type: ignore[arg-type]  # checked there
            temperature=0,
            max_tokens=options.max_tokens,
            max_string=24,
            prefer_tools=True,
            reuse=mode,  # type: ignore[arg-type]
            kv_namespace=f"{app.name} {mode}",
        )
        graph, runs = app.build(llm), list[list[RequestReport]]()
        for run in range(count):
            # Reports of a namespace are in order; only those of this run are new.
            before = sum(map(len, runs))
            graph.invoke(app.inputs[run % len(app.inputs)], {"recursion_limit": 12})
            llm.engine.settle()
            mine = [report for report in llm.engine.reports if report.namespace == llm.kv_namespace]
            runs.append(mine[before:])
            done += 1
            tell(app.name, done, sum(plan.values()))
        figures[mode] = {
            "runs": count,
            "first": _counts(runs[0]),
            "later": _counts([report for run in runs[1:] for report in run]),
            "last": _counts(runs[-1]),
        }
        llm.engine.forget(llm.kv_namespace)
    return llm.engine.load(), figures


def _counts(reports: Sequence[RequestReport]) -> dict[str, Any]:
    names = ("prompt_tokens", "spans_found", "span_tokens", "placed_exact_tokens", "placed_corrected_tokens")
    counts = {name: sum(getattr(report, name) for report in reports) for name in names}
    placed, prompt = sum(report.placed_tokens for report in reports), counts["prompt_tokens"]
    return {"calls": len(reports), **counts, "placed_share": round(placed / prompt, 4) if prompt else 0.0}


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """An app, and of its later runs the calls, the spans found, and tokens: of prompts, in spans, and placed."""
    columns = {
        "app": ":key",
        "calls": "auto/later/calls",
        "spans": "auto/later/spans_found",
        "prompt": "auto/later/prompt_tokens",
        "in spans": "auto/later/span_tokens",
        "exact": "auto/later/placed_exact_tokens",
        "corrected": "auto/later/placed_corrected_tokens",
        "placed": "auto/later/placed_share:.0%",
        "last run": "auto/last/placed_share:.0%",
        "mode corrected": "corrected/later/placed_share:.0%",
    }
    yield Table(title(report, f"runs 2 to {report['runs']}"), columns, report["apps"])
