"""`kvcomm bench`: every measurement writes JSON, prints a table and draws a figure. Light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .console import Count, Data, DTypeName, Json, Model, Names, Plot, Set, model_name, progress, table, writable, write

if TYPE_CHECKING:
    from .chain import Chain
    from .shift import Phase
    from .team import Agent

bench_app = typer.Typer(
    help="Measure how far reuse diverges from a dense prefill, and what it saves.", no_args_is_help=True
)


def _chain(model: str, dtype: str, agents: Sequence[Agent] | None = None, silent: Sequence[str] = ()) -> Chain:
    from ..models import load_model
    from ..runner import Runner
    from .chain import Chain
    from .team import chain

    loaded = load_model(model, dtype=dtype)  # type: ignore[arg-type]  # checked there
    return Chain(loaded, Runner(loaded.model), agents or chain(), silent=silent)


def _chosen(names: str) -> tuple[str, ...]:
    from .strategies import NAMES

    return tuple(name.strip() for name in names.split(",") if name.strip()) or NAMES


@bench_app.command()
def fidelity(
    model: Model = "default",
    data: Data = None,
    questions: Set = "gsm8k",
    warmup: Count = 16,
    evaluation: Annotated[int, typer.Option("--eval", min=1)] = 32,
    strategies: Names = "",
    dtype: DTypeName = "auto",
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Divergence from dense and tokens computed, strategy by strategy."""
    from ..cli import plain_errors

    with plain_errors():
        from .data import load_questions
        from .fidelity import Setting, measure
        from .plots import plot_fidelity

        writable(json_path, plot)
        setting = Setting(tuple(load_questions(questions, warmup + evaluation, data)), warmup, _chosen(strategies))
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
    evaluation: Annotated[int, typer.Option("--eval", min=1)] = 24,
    strategies: Names = "",
    dtype: DTypeName = "auto",
    json_path: Json = None,
) -> None:
    """Whether a judge of four answers picks as it does when prefilled densely."""
    from ..cli import plain_errors

    with plain_errors():
        from .data import load_questions
        from .judges import JUDGES, contest, judge

        writable(json_path)
        texts = load_questions(questions, warmup + evaluation, data)
        chain = _chain(model, dtype, contest(), silent=JUDGES)
        with progress() as tell:
            found = judge(chain, texts, warmup, _chosen(strategies), tell=tell)
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
    from ..cli import plain_errors

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
    evaluation: Annotated[int, typer.Option("--eval", min=1)] = 100,
    dtype: DTypeName = "auto",
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Guarded reuse from a cold start, over a stream of questions."""
    from ..cli import plain_errors

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


@bench_app.command()
def engine(model: Model = "default", dtype: DTypeName = "float32", json_path: Json = None, rounds: Count = 7) -> None:
    """The runner against transformers itself, and a prefix hit against its floor."""
    from ..models import load_model
    from .engine import measure_engine

    writable(json_path)
    report = measure_engine(load_model(model, dtype=dtype), rounds=rounds)  # type: ignore[arg-type]  # checked there
    grid = Table("prompt", "prefill / transformers", "decode / its best cache", title="Our seconds over theirs")
    for length, row in report["lengths"].items():
        grid.add_row(length, f"{row['prefill_ratio']:.2f}", f"{row['decode_ratio']:.2f}")
    Console().print(grid)
    hit = report["prefix"]
    Console().print(
        f"{hit['prefix_tokens']} tokens placed, {hit['computed_tokens']} computed: {hit['dense_over_hit']:.1f}x faster"
        f" than dense, {hit['hit_over_floor']:.2f}x its floor of one short forward and the copy",
        highlight=False,
    )
    write(report, json_path)


@bench_app.command()
def hitpath(
    model: Model = "default",
    dtype: DTypeName = "float32",
    json_path: Json = None,
    known: Count = 10_000,
    rounds: Count = 5,
) -> None:
    """What finding, correcting and placing spans costs beside what it saves."""
    from ..models import load_model
    from .hitpath import measure_hitpath

    writable(json_path)
    loaded = load_model(model, dtype=dtype)  # type: ignore[arg-type]  # checked there
    report = measure_hitpath(loaded, known=known, rounds=rounds)
    grid = Table("prompt", "match", "correct", "assemble", "forward", "dense", "cost / saved", title="Milliseconds")
    for length, row in report["lengths"].items():
        parts = [f"{1e3 * row[f'{name}_s']:.1f}" for name in ("match", "correct", "assemble", "forward", "dense")]
        grid.add_row(length, *parts, f"{row['overhead_of_saved']:.1%}")
    Console().print(grid)
    write(report, json_path)


@bench_app.command()
def decode(
    model: Model = "default",
    data: Data = None,
    requests: Annotated[str, typer.Option(help="How many at once, separated by commas.")] = "1,2,4,8,16",
    tokens: Count = 48,
    rounds: Count = 3,
    dtype: DTypeName = "float32",
    json_path: Json = None,
    plot: Plot = None,
) -> None:
    """Tokens per second and time between tokens of concurrent requests, decoded together and in turn."""
    from ..cli import plain_errors

    with plain_errors():
        from ..models import load_model
        from .data import load_questions
        from .decode import counted, measure_decode, prompts
        from .plots import plot_decode

        writable(json_path, plot)
        counts = counted(requests)
        loaded = load_model(model, dtype=dtype)  # type: ignore[arg-type]  # checked there
        texts = prompts(loaded.tokenizer, load_questions("gsm8k", 200, data), max(counts))
        with progress() as tell:
            report = measure_decode(loaded, texts, counts, tokens, rounds, tell)
        write(report, json_path)
        if plot is not None:
            plot_decode(report, plot)
        rows = []
        for count, row in report["requests"].items():
            cells = [f"{row[way]['tokens_per_s']:.1f}" for way in ("in_turn", "together")]
            gaps = [f"{1e3 * row[way]['gap_p95_s']:.0f}" for way in ("in_turn", "together")]
            rows.append((count, *cells, f"{row['speedup']:.2f}", *gaps, "yes" if row["same_answers"] else "no"))
        columns = ("requests", "in turn", "together", "ratio", "p95 gap in turn", "together", "same answers")
        table(f"{report['model']}, {report['dtype']}: tokens per second, ms", columns, rows)
        late = report["arrival"]
        Console().print(
            f"a prompt of {late['prompt_tokens']} tokens beside {late['streams']} streams: longest gap"
            f" {late['together']['longest_gap_s']:.2f} s (in turn {late['in_turn']['longest_gap_s']:.2f}), its first"
            f" token after {late['together']['first_token_s']:.2f} s (in turn {late['in_turn']['first_token_s']:.2f})",
            highlight=False,
        )
