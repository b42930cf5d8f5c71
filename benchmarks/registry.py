"""The benchmarks: name, options, and where the code is that measures, shows and draws. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

from . import options


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    Args:
        name: of its command.
        options: what it is told; the docstring is the command's help.
        module: in `benchmarks`; has `measure(options, session) -> Report` and `tables(report)`, an iterable of
            `Table` and lines of text.
        plot: a function `(report, file)` of `benchmarks.plots`, as `module:function`; empty where nothing is drawn.
    """

    name: str
    options: type[options.NameOptions]
    module: str
    plot: str = ""


BENCHMARKS = (
    Benchmark("fidelity", options.FidelityOptions, "fidelity", "fidelity:plot_fidelity"),
    Benchmark("judges", options.JudgesOptions, "judges"),
    Benchmark("shift", options.ShiftOptions, "online", "fidelity:plot_online"),
    Benchmark("stream", options.StreamOptions, "online", "fidelity:plot_online"),
    Benchmark("ttft", options.TtftOptions, "ttft", "speed:plot_ttft"),
    Benchmark("grid", options.GridOptions, "grid"),
    Benchmark("growth", options.GrowthOptions, "growth", "speed:plot_growth"),
    Benchmark("hitpath", options.HitpathOptions, "hitpath"),
    Benchmark("engine", options.EngineOptions, "engine"),
    Benchmark("decode", options.DecodeOptions, "decode", "speed:plot_decode"),
    Benchmark("rag", options.RagOptions, "rag", "warm:plot_rag"),
    Benchmark("warm", options.WarmOptions, "packs", "warm:plot_packs"),
    Benchmark("numerics", options.NumericsOptions, "numerics", "warm:plot_numerics"),
    Benchmark("economy", options.EconomyOptions, "economy"),
    Benchmark("changed", options.ChangedOptions, "changed"),
    Benchmark("apps", options.AppsOptions, "apps"),
    Benchmark("serve", options.ServeOptions, "serve"),
    Benchmark("load", options.LoadOptions, "load"),
)
