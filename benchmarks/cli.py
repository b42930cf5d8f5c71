"""`kvcomm bench`: every measurement writes JSON, prints a table and draws a figure. Light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from kvcomm_agents.entrypoints.cli.console import DTypeName, Model, table
from kvcomm_agents.entrypoints.cli.terminal import plain_errors

from .console import model_name, progress, writable, write
from .options import Count, Data, Evaluation, Json, Names, Plot, Set, chosen, load

if TYPE_CHECKING:
    from .chain import Chain
    from .shift import Phase
    from .team import Agent

bench_app = typer.Typer(
    help="Measure how far reuse diverges from a dense prefill, and what it saves.", no_args_is_help=True
)


def _chain(model: str, dtype: str, agents: Sequence[Agent] | None = None, silent: Sequence[str] = ()) -> Chain:
    from kvcomm_agents.backends.transformers.runner import Runner

    from .chain import Chain
    from .team import chain

    loaded = load(model, dtype)
    return Chain(loaded, Runner(loaded.model), agents or chain(), silent=silent)


def _strategies(names: str) -> tuple[str, ...]:
    from .strategies import NAMES

    return chosen(names) or NAMES


@bench_app.command()
def fidelity(
    model: Model = "default",
    data: Data = None,
    questions: Set = "gsm8k",
    warmup: Count = 16,
    evaluation: Evaluation = 32,
    strategies: Names = "",
    dtype: DTypeName = "auto",
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Divergence from dense and tokens computed, strategy by strategy."""
    with plain_errors():
        from .data import load_questions
        from .fidelity import Setting, measure
        from .plots import plot_fidelity

        writable(json_path, plot)
        setting = Setting(tuple(load_questions(questions, warmup + evaluation, data)), warmup, _strategies(strategies))
        chain = _chain(model, dtype)
        with progress() as tell:
            found = measure(chain, setting, tell=tell)
        report = {"model": model_name(chain.loaded), "data": questions, **found}
        write(report, json_path)
        if plot is not None:
            plot_fidelity(report, plot)
        table(
            f"{report['model']}, {questions}: {warmup} + {evaluation} questions",
            ("strategy", "n", "computed", "KL@1", "KL", "median", "p90", "max", "top-1", "EM", "wins"),
            [(name, *_cells(one)) for name, one in report["strategies"].items()],
        )
        if guarded := report["strategies"].get("guarded"):
            Console().print(
                f"guarded: {guarded['reused_share']:.0%} of calls reused, rungs {guarded['rungs']},"
                f" predicted {guarded['predicted_mean']}, true {guarded['true_mean']},"
                f" within the bound {guarded['within_bound']}",
                highlight=False,
            )


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    against = one.get("against_interpolation")
    return (
        str(one["n"]),
        f"{100 * one['computed_fraction']:.1f} %",
        f"{one['kl_first']:.3f}",
        *(f"{one[key]:.4f}" for key in ("kl_mean", "kl_median", "kl_p90", "kl_max")),
        f"{one['top1']:.3f}",
        f"{one['exact_match']:.2f}",
        f"{against['wins']:.0%}" if against else "-",
    )


@bench_app.command()
def judges(
    model: Model = "default",
    data: Data = None,
    questions: Set = "gsm8k",
    warmup: Count = 8,
    evaluation: Evaluation = 24,
    strategies: Names = "",
    dtype: DTypeName = "auto",
    json_path: Json = None,
) -> None:
    """Whether a judge of four answers picks as it does when prefilled densely."""
    with plain_errors():
        from .data import load_questions
        from .judges import JUDGES, contest, judge

        writable(json_path)
        texts = load_questions(questions, warmup + evaluation, data)
        chain = _chain(model, dtype, contest(), silent=JUDGES)
        with progress() as tell:
            found = judge(chain, texts, warmup, _strategies(strategies), tell=tell)
        report = {"model": model_name(chain.loaded), "data": questions, **found}
        write(report, json_path)
        dense = report["dense_judge"]
        Console().print(
            f"dense judge, answers in order and shuffled: same answer {dense['same_answer']:.0%}, same place"
            f" {dense['same_place']:.0%}, places {dense['places']}",
            highlight=False,
        )
        table(
            f"{report['model']}, {questions}: picks as the dense judge does",
            ("strategy", "n", "consistency", "in order", "shuffled"),
            [
                (name, str(one["n"]), *(f"{one[key]:.2f}" for key in ("judge_consistency", "in_order", "shuffled")))
                for name, one in report["strategies"].items()
            ],
        )


@bench_app.command()
def shift(
    model: Model = "default",
    data: Data = None,
    warmup: Count = 16,
    evaluation: Annotated[int, typer.Option("--eval", min=1, help="Questions of each later set.")] = 12,
    dtype: DTypeName = "auto",
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Guarded reuse while the kind of text changes: GSM8K, HumanEval, other languages and registers, GSM8K again."""
    with plain_errors():
        from .data import load_questions
        from .shift import REGISTERS, Phase

        gsm8k = load_questions("gsm8k", warmup + evaluation, data)
        phases = [
            Phase("GSM8K", tuple(gsm8k[:warmup])),
            Phase("HumanEval", tuple(load_questions("humaneval", evaluation, data))),
            Phase("languages and registers", REGISTERS[:evaluation]),
            Phase("GSM8K again", tuple(gsm8k[warmup:])),
        ]
        _online(model, dtype, "gsm8k, humaneval, own texts", phases, json_path, plot)


@bench_app.command()
def stream(
    model: Model = "default",
    data: Data = None,
    questions: Set = "gsm8k",
    evaluation: Evaluation = 100,
    dtype: DTypeName = "auto",
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Guarded reuse from a cold start, over a stream of questions."""
    with plain_errors():
        from .data import load_questions
        from .shift import Phase

        texts = load_questions(questions, evaluation, data)
        step = -(-evaluation // 4)
        quarters = [
            Phase(f"{at + 1} to {min(at + step, evaluation)}", tuple(texts[at : at + step]))
            for at in range(0, evaluation, step)
        ]
        _online(model, dtype, questions, quarters, json_path, plot)


def _online(
    model: str, dtype: str, data: str, phases: Sequence[Phase], json_path: Path | None, plot: Path | None
) -> None:
    from .plots import plot_stream
    from .shift import online

    writable(json_path, plot)
    chain = _chain(model, dtype)
    with progress() as tell:
        found = online(chain, phases, tell=tell)
    report = {"model": model_name(chain.loaded), "data": data, **found}
    write(report, json_path)
    if plot is not None:
        plot_stream(report, plot)
    table(
        f"{report['model']}, guarded, bound {report['max_divergence']}",
        ("questions", "n", "reused", "computed", "KL", "p90", "max", "audits", "over"),
        [
            (
                phase["name"],
                str(phase["n"]),
                f"{phase['reused_share']:.0%}",
                f"{100 * phase['computed_fraction']:.1f} %",
                *(f"{phase[key]:.4f}" for key in ("kl_mean", "kl_p90", "kl_max")),
                str(phase["audited"]),
                str(phase["audited_over_bound"]),
            )
            for phase in report["phases"]
        ],
    )
