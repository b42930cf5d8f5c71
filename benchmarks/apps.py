"""`kvcomm bench apps`: what is found and placed in LangChain apps as they are, run after run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcomm_agents.errors import ConfigError
from kvcomm_agents.observe.report import RequestReport

from .console import Tell, quietly

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
    title = (module.__doc__ or "").strip().split("\n")[0]
    return App(file.stem, title, build, (first, *getattr(module, "MORE", ())))


def measure_app(
    app: App,
    model: str = "default",
    dtype: str = "auto",
    runs: int = 8,
    max_tokens: int = 40,
    tell: Tell = quietly,
) -> dict[str, Any]:
    """Run an app several times on one model, in a namespace of its own, and count from its reports.

    Between two runs the engine is given the time to learn from the last one. Greedy. Tools are called
    where there are some, since a small model would not choose to.

    Args:
        app: to be run.
        model: folder, GGUF file or hub id.
        dtype: of its weights.
        runs: with the guard's leave (`auto`); placing all that can be (`corrected`) needs less and has
            at most three. An app with fewer inputs begins again with its first.
        max_tokens: that a call may answer with.
        tell: of the progress.

    Returns:
        By mode the counts of the first run, of all later ones, and of the last.
    """
    from langchain_kvcomm import ChatKVComm

    found: dict[str, Any] = {"title": app.title}
    plan = {"auto": runs, "corrected": min(runs, _CORRECTED_RUNS)}
    done = 0
    for mode, count in plan.items():
        llm = ChatKVComm(
            model=model,
            dtype=dtype,  # type: ignore[arg-type]  # checked there
            temperature=0,
            max_tokens=max_tokens,
            max_string=24,
            prefer_tools=True,
            reuse=mode,  # type: ignore[arg-type]
            kv_namespace=f"{app.name} {mode}",
        )
        graph, rows = app.build(llm), []
        for run in range(count):
            tell(app.name, done, sum(plan.values()))
            # Reports of a namespace are in order; only those of this run are new.
            before = len(_reports(llm.engine.reports, llm.kv_namespace))
            graph.invoke(app.inputs[run % len(app.inputs)], {"recursion_limit": 12})
            llm.engine.settle()
            rows.append(_reports(llm.engine.reports, llm.kv_namespace)[before:])
            done += 1
        found[mode] = {
            "runs": count,
            "first": _counts(rows[0]),
            "later": _counts([report for row in rows[1:] for report in row]),
            "last": _counts(rows[-1]),
        }
        llm.engine.forget(llm.kv_namespace)
    tell(app.name, done, done)
    return found


def _reports(reports: Sequence[RequestReport], namespace: str) -> list[RequestReport]:
    return [report for report in reports if report.namespace == namespace]


def _counts(reports: Sequence[RequestReport]) -> dict[str, Any]:
    prompt = sum(one.prompt_tokens for one in reports)
    exact, corrected = (
        sum(getattr(one, f"placed_{kind}_tokens") for one in reports) for kind in ("exact", "corrected")
    )
    return {
        "calls": len(reports),
        "prompt_tokens": prompt,
        "spans_found": sum(one.spans_found for one in reports),
        "span_tokens": sum(one.span_tokens for one in reports),
        "placed_exact_tokens": exact,
        "placed_corrected_tokens": corrected,
        "placed_share": round((exact + corrected) / prompt, 4) if prompt else 0.0,
    }


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Of the table: an app, and of its later runs the calls, spans a call, and shares of the prompt tokens."""
    table = []
    for name, app in report["apps"].items():
        auto, corrected = app["auto"]["later"], app["corrected"]["later"]
        share = [auto[key] / auto["prompt_tokens"] for key in ("span_tokens", "placed_exact_tokens")]
        share += [one["placed_corrected_tokens"] / one["prompt_tokens"] for one in (auto, app["auto"]["last"])]
        share += [one["placed_share"] for one in (auto, corrected)]
        spans = f"{auto['spans_found'] / auto['calls']:.1f}"
        table.append((name, str(auto["calls"]), spans, *(f"{100 * one:.0f} %" for one in share)))
    return table
