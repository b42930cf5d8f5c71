"""What was done to every token of a prompt, and where its text came from: a plan in words."""

from __future__ import annotations

from collections.abc import Sequence

from ..observe.report import Provenance, RunKind, TokenRun
from ..plan import Placed, PrefillPlan
from .segments import Segment


def token_runs(plan: PrefillPlan, segments: Sequence[Segment], agent: str) -> tuple[TokenRun, ...]:
    """The runs of a plan, cut where the text comes from somewhere else.

    Args:
        plan: what was executed.
        segments: of the prompt, in order, as far as anybody looked; gaps are `unknown`.
        agent: whose prompt.
    """
    runs: list[TokenRun] = []
    for run in plan.runs:
        if isinstance(run, Placed) and run.exact:
            _append(runs, TokenRun(run.start, run.stop, "exact", "prefix", run.source))
            continue
        kind: RunKind = "corrected" if isinstance(run, Placed) else "computed"
        # placed from the prefix store, behind corrected KV; spans carry no source of their own
        source = run.source if isinstance(run, Placed) else ""
        gap: Provenance = "prefix" if source else "unknown"
        at = run.start
        for one in segments:
            start, stop = max(one.start, at), min(one.stop, run.stop)
            if start < stop:
                _append(runs, TokenRun(at, start, kind, gap, source))
                _append(runs, TokenRun(start, stop, kind, *_provenance(one, agent)))
                at = stop
        _append(runs, TokenRun(at, run.stop, kind, gap, source))
    return tuple(runs)


def _provenance(segment: Segment, agent: str) -> tuple[Provenance, str]:
    if segment.kind == "new":
        return "new", ""
    if segment.kind == "static":
        return "own", agent
    return ("answer" if segment.written else "prompt"), segment.producer


def _append(runs: list[TokenRun], run: TokenRun) -> None:
    """Add a run, joined with the one before it if both are alike; nothing if it is empty."""
    if run.start == run.stop:
        return
    if runs and (runs[-1].kind, runs[-1].text, runs[-1].source) == (run.kind, run.text, run.source):
        run = TokenRun(runs.pop().start, run.stop, run.kind, run.text, run.source)
    runs.append(run)
