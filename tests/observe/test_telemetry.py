"""Reports: they add up, say where every token came from, and reach whoever watches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import torch
from two_agents import QUESTIONS, call, chain, made, make_speaker

from kvcomm_agents import Message, Request, RequestReport, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import PromptError, RequestCancelledError, RequestTimeoutError
from kvcomm_agents.kv.block import KVBlock
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.observe.report import PHASES, AuditReport, TokenRun, finish_reason_of
from kvcomm_agents.observe.telemetry import Telemetry
from kvcomm_agents.plan import Computed, Placed, PrefillPlan
from kvcomm_agents.planning.segments import Segment
from kvcomm_agents.planning.token_runs import token_runs


@pytest.fixture(scope="module")
def speaker() -> LoadedModel:
    return make_speaker()


@pytest.fixture(scope="module")
def reports(speaker: LoadedModel) -> Iterator[tuple[RequestReport, ...]]:
    engine = made(speaker, mode="corrected", audit_share=1.0)
    for question in QUESTIONS[:7]:  # until there are maps, which need no heads
        chain(engine, question)
    yield engine.reports
    engine.close()


class Watcher:
    def __init__(self) -> None:
        self.requests: list[RequestReport] = []
        self.audits: list[AuditReport] = []
        self.closed = 0

    def on_request(self, report: RequestReport) -> None:
        self.requests.append(report)

    def on_audit(self, report: AuditReport) -> None:
        self.audits.append(report)

    def close(self) -> None:
        self.closed += 1


class Broken(Watcher):
    def on_request(self, report: RequestReport) -> None:
        raise RuntimeError("no room")

    on_audit = close = on_request  # type: ignore[assignment]


def test_the_runs_cover_the_prompt_and_add_up(reports: tuple[RequestReport, ...]) -> None:
    for report in reports:
        edges = [0, *(run.stop for run in report.runs)]
        assert [run.start for run in report.runs] == edges[:-1]
        assert edges[-1] == report.prompt_tokens
        counts = {"computed": report.computed_tokens, "exact": report.placed_exact_tokens}
        counts["corrected"] = report.placed_corrected_tokens
        for kind, tokens in counts.items():
            assert sum(run.tokens for run in report.runs if run.kind == kind) == tokens


def test_the_runs_say_whose_text_it_is(reports: tuple[RequestReport, ...]) -> None:
    critic = reports[-1]
    corrected = [run for run in critic.runs if run.kind == "corrected"]
    assert {("answer", "solver"), ("prompt", "solver")} <= {(run.text, run.source) for run in corrected}
    assert ("own", "critic") in {(run.text, run.source) for run in critic.runs}
    prefix = [(run.kind, run.text, run.source) for run in critic.runs[:2]]
    # the words that both agents' prompts begin with were computed in the solver's
    assert prefix == [("exact", "prefix", "solver"), ("exact", "prefix", "critic")]
    assert {run.text for run in reports[0].runs} == {"new"}
    assert "solver's answer" in next(run for run in corrected if run.text == "answer").describe()


def test_a_corrected_prefix_is_the_start_of_an_earlier_context() -> None:
    block = KVBlock(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    exact, tainted = Placed(0, 4, block, exact=True, source="a"), Placed(4, 8, block, exact=False, source="b")
    segments = (Segment(8, 10, "span", 3, producer="c", written=True),)
    runs = token_runs(PrefillPlan((exact, tainted, Computed(8, 12))), segments, "b")
    assert runs == (
        TokenRun(0, 4, "exact", "prefix", "a"),
        TokenRun(4, 8, "corrected", "prefix", "b"),
        TokenRun(8, 10, "computed", "answer", "c"),
        TokenRun(10, 12, "computed"),
    )


def test_the_phases_add_up_to_the_time_it_took(reports: tuple[RequestReport, ...]) -> None:
    for report in reports:
        assert tuple(report.phases) == PHASES
        assert min(report.phases.values()) >= 0
        assert sum(report.phases.values()) == pytest.approx(report.total_s)
        assert report.phases["match"] >= report.match_s > 0
    starts = [report.started_at for report in reports]
    assert starts == sorted(starts)
    assert time.time() - 600 < starts[0] < time.time()
    ends = [report.started_at + report.total_s for report in reports]
    assert all(end <= start + 0.01 for end, start in zip(ends, starts[1:], strict=False))


def test_a_report_survives_json(reports: tuple[RequestReport, ...]) -> None:
    for report in reports:
        record = json.loads(json.dumps(report.as_dict(runs=True)))
        assert RequestReport.from_dict({**record, "a_later_field": 1}) == report
    assert "runs" not in reports[0].as_dict()
    with pytest.raises(TypeError):
        RequestReport.from_dict({"agent": "a"})


def test_observers_are_told_before_the_caller_and_break_nothing(speaker: LoadedModel) -> None:
    engine, watcher = made(speaker, mode="auto", max_divergence=100.0, audit_share=1.0), Watcher()
    engine.observe(Broken())
    engine.observe(watcher)
    for question in QUESTIONS:
        first, second = chain(engine, question)
        assert watcher.requests[-2:] == [first.report, second.report]
    assert tuple(watcher.requests) == engine.reports
    assert watcher.audits
    assert all(audit.divergence > 0 and audit.predicted > 0 for audit in watcher.audits)
    assert all(audit.agent in str(audit) for audit in watcher.audits)
    engine.close()
    assert watcher.closed == 1
    assert engine.reports, "reports outlive the engine"


def test_failures_are_reported(speaker: LoadedModel) -> None:
    engine, watcher = made(speaker, mode="exact"), Watcher()
    engine.observe(watcher)
    with pytest.raises(PromptError):
        engine.generate(Request(prompt_ids=(), agent="nobody"))
    params = SamplingParams(max_tokens=400)
    with pytest.raises(RequestTimeoutError):
        engine.generate(Request((Message("user", "x"),), params, agent="slow", timeout_s=1e-6))
    call(engine, "fine", "still there?")
    engine.close()
    failed = [(report.agent, report.finish_reason) for report in watcher.requests[:2]]
    assert failed == [("nobody", "error"), ("slow", "timeout")]
    assert "PromptError: the prompt is empty" in str(watcher.requests[0])
    assert watcher.requests[0].prompt_tokens == 0
    assert watcher.requests[2].error == ""
    assert finish_reason_of(RequestCancelledError()) == "cancelled"


def test_only_the_last_reports_are_kept() -> None:
    telemetry = Telemetry(keep=2)
    for tokens in range(5):
        telemetry.request(RequestReport("a", tokens, tokens))
    assert [report.prompt_tokens for report in telemetry.reports] == [3, 4]


def test_every_run_has_words() -> None:
    for text in ("prefix", "answer", "prompt", "own", "new", "unknown"):
        for kind in ("exact", "corrected", "computed"):
            assert TokenRun(0, 3, kind, text, "ann").describe()  # type: ignore[arg-type]


def test_an_engine_says_what_waits(engine: Engine) -> None:
    assert engine.waiting == 0
