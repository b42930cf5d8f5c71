"""Exporters: what Prometheus scrapes and OpenTelemetry is sent are the figures of the reports."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_agents import QUESTIONS, call, chain, made, make_speaker

from kvcomm_agents import Message, Request, SamplingParams
from kvcomm_agents.engine.engine import Engine
from kvcomm_agents.errors import ConfigError, PromptError, RequestTimeoutError
from kvcomm_agents.observe.report import PHASES, AuditReport, RequestReport

prometheus_client = pytest.importorskip("prometheus_client", reason="needs the prometheus extra")
trace = pytest.importorskip("opentelemetry.sdk.trace", reason="needs the otel extra")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import StatusCode  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from kvcomm_agents.observe.exporters import OpenTelemetryExporter, PrometheusExporter  # noqa: E402

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Watched:
    """An engine that served, failed, timed out and was cancelled; and what its exporters had then."""

    def __init__(self) -> None:
        self.engine = made(make_speaker(), mode="auto", max_divergence=100.0, audit_share=1.0)
        self.audits: list[AuditReport] = []
        self.prometheus = PrometheusExporter(prometheus_client.CollectorRegistry())
        self.spans = InMemorySpanExporter()
        self.provider = trace.TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.prometheus.watch(self.engine)
        OpenTelemetryExporter(self.provider).watch(self.engine)
        self.engine.observe(self)
        for question in QUESTIONS[:7]:
            chain(self.engine, question)
        with pytest.raises(PromptError):
            self.engine.generate(Request(prompt_ids=(), agent="solver"))
        with pytest.raises(RequestTimeoutError):
            self.engine.generate(Request((Message("user", "x"),), agent="slow", timeout_s=1e-6))
        cancel(self.engine)
        self.engine.settle()

    def on_request(self, report: RequestReport) -> None:
        pass

    def on_audit(self, report: AuditReport) -> None:
        self.audits.append(report)

    def close(self) -> None:
        pass


def cancel(engine: Engine) -> None:
    """A caller that goes away after the first words."""
    params = SamplingParams(max_tokens=300, temperature=2.0, top_k=3, seed=1)
    stream = engine.stream(Request((Message("user", "Please say something long."),), params, agent="solver"))
    next(stream)
    stream.close()
    engine.settle()


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    one = Watched()
    yield one
    one.engine.close()
    one.provider.shutdown()


@pytest.fixture(scope="module")
def samples(watched: Watched) -> Samples:
    port = watched.prometheus.serve(0)
    found = scrape(port)
    watched.prometheus.close()
    return found


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.name.startswith("kvcomm_")
            if not sample.name.endswith("_created"):
                found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def of(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all samples of that name that have those labels."""
    return sum(value for (one, has), value in samples.items() if one == name and labels.items() <= set(has))


def test_a_cancelled_request_says_how_far_it_came(watched: Watched) -> None:
    failed = {report.finish_reason: report for report in watched.engine.reports if report.error}
    assert failed.keys() == {"error", "timeout", "cancelled"}
    report = failed["cancelled"]
    assert report.agent == "solver"
    assert 0 < report.output_tokens < 300
    assert report.prompt_tokens == report.computed_tokens + report.placed_tokens > 0
    assert report.runs[-1].stop == report.prompt_tokens
    assert 0 < report.ttft_s < report.total_s
    assert sum(report.phases.values()) == pytest.approx(report.total_s)
    assert f"{report.output_tokens} more" in str(report)
    assert failed["timeout"].queue_s == failed["timeout"].total_s
    assert len(watched.engine.reports) == 17


def test_requests_and_tokens_are_those_of_the_reports(watched: Watched, samples: Samples) -> None:
    reports = watched.engine.reports
    counted = Counter((report.agent, report.finish_reason) for report in reports)
    for (agent, outcome), count in counted.items():
        assert of(samples, "kvcomm_requests_total", agent=agent, outcome=outcome) == count
    assert of(samples, "kvcomm_requests_total") == len(reports)
    assert of(samples, "kvcomm_requests_total", model="tiny-llama") == len(reports)
    for agent in {report.agent for report in reports}:
        mine = [report for report in reports if report.agent == agent]
        kinds = {
            "computed": sum(report.computed_tokens for report in mine),
            "exact": sum(report.placed_exact_tokens for report in mine),
            "corrected": sum(report.placed_corrected_tokens for report in mine),
        }
        for kind, tokens in kinds.items():
            assert of(samples, "kvcomm_prompt_tokens_total", agent=agent, kind=kind) == tokens
        output = sum(report.output_tokens for report in mine)
        assert of(samples, "kvcomm_output_tokens_total", agent=agent) == output
        assert of(samples, "kvcomm_spans_found_total", agent=agent) == sum(report.spans_found for report in mine)
    assert of(samples, "kvcomm_prompt_tokens_total", kind="corrected") > 0
    for rung, count in Counter(report.rung for report in reports).items():
        assert of(samples, "kvcomm_rungs_total", rung=rung) == count


def test_times_are_those_of_the_reports(watched: Watched, samples: Samples) -> None:
    reports = watched.engine.reports
    assert of(samples, "kvcomm_request_seconds_count") == len(reports)
    assert of(samples, "kvcomm_request_seconds_sum") == pytest.approx(sum(report.total_s for report in reports))
    first = [report.ttft_s for report in reports if report.ttft_s]
    assert of(samples, "kvcomm_time_to_first_token_seconds_count") == len(first) == 15
    assert of(samples, "kvcomm_time_to_first_token_seconds_sum") == pytest.approx(sum(first))
    for phase in PHASES:
        total = sum(report.phases[phase] for report in reports)
        assert of(samples, "kvcomm_phase_seconds_sum", phase=phase) == pytest.approx(total)
    below = sum(report.total_s <= 0.5 for report in reports)
    assert of(samples, "kvcomm_request_seconds_bucket", le="0.5") == below


def test_audits_and_gauges_are_those_of_the_engine(watched: Watched, samples: Samples) -> None:
    assert watched.audits
    assert of(samples, "kvcomm_audits_total", outcome="within") == len(watched.audits)
    assert of(samples, "kvcomm_audit_divergence_nats_sum") == pytest.approx(
        sum(audit.divergence for audit in watched.audits)
    )
    held, learned = watched.engine.stats, watched.engine.learned
    assert of(samples, "kvcomm_store_bytes", tier="host") == held.host_bytes > 0
    assert of(samples, "kvcomm_store_bytes", tier="device") == held.device_bytes
    assert of(samples, "kvcomm_store_tokens") == held.tokens
    assert of(samples, "kvcomm_waiting_requests") == 0
    assert of(samples, "kvcomm_spans") == learned.spans > 0
    assert of(samples, "kvcomm_span_bytes") == learned.span_bytes > 0
    assert of(samples, "kvcomm_anchors") == learned.anchors > 0
    assert of(samples, "kvcomm_anchor_bytes") == learned.anchor_bytes > 0
    assert of(samples, "kvcomm_guard_audited_requests") == learned.audited == len(watched.audits)
    assert of(samples, "kvcomm_guard_within_ratio") == 1 - learned.exceeded / learned.audited


def test_spans_are_the_reports(watched: Watched) -> None:
    reports = watched.engine.reports
    spans = watched.spans.get_finished_spans()
    requests = [span for span in spans if span.name == "chat tiny-llama"]
    assert len(requests) == len(reports)
    for span, report in zip(requests, reports, strict=True):
        fields = {name: value for name, value in report.as_dict().items() if value is not None and value != ""}
        assert {name: span.attributes[f"kvcomm.{name}"] for name in fields} == fields
        assert span.attributes["gen_ai.usage.input_tokens"] == report.prompt_tokens
        assert span.attributes["gen_ai.usage.output_tokens"] == report.output_tokens
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(report.total_s, abs=1e-5)
        assert span.start_time / 1e9 == pytest.approx(report.started_at, abs=1e-5)
        failed = report.finish_reason in ("error", "timeout")
        assert (span.status.status_code == StatusCode.ERROR) == failed
        phases = [one for one in spans if one.parent and one.parent.span_id == span.context.span_id]
        assert [one.name for one in phases] == [f"kvcomm {phase}" for phase in PHASES]
        lasted = [(one.end_time - one.start_time) / 1e9 for one in phases]
        assert lasted == pytest.approx(list(report.phases.values()), abs=1e-5)
        assert phases[0].start_time == span.start_time
        assert phases[-1].end_time == pytest.approx(span.end_time, abs=1e4)
    audits = [span for span in spans if span.name == "kvcomm audit"]
    assert [span.attributes["kvcomm.divergence"] for span in audits] == [one.divergence for one in watched.audits]
    assert {span.attributes["kvcomm.namespace"] for span in audits} == {"default"}


def test_a_request_is_a_child_of_the_callers_span(watched: Watched) -> None:
    tracer = watched.provider.get_tracer("app")
    with tracer.start_as_current_span("node") as node:
        call(watched.engine, "solver", "who calls?")
    call(watched.engine, "solver", "and who calls now?")
    inside, outside = [span for span in watched.spans.get_finished_spans() if span.name == "chat tiny-llama"][-2:]
    assert inside.parent is not None
    assert inside.parent.span_id == node.get_span_context().span_id
    assert outside.parent is None


def test_the_page_names_every_metric(watched: Watched) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    families = list(watched.prometheus.registry.collect())
    assert len(families) == 26
    for family in families:
        assert f"`{family.name}{'_total' if family.type == 'counter' else ''}`" in page


def test_many_agents_are_one_label() -> None:
    registry = prometheus_client.CollectorRegistry()
    exporter = PrometheusExporter(registry, max_agents=2)
    engine = made(make_speaker(), mode="exact")
    exporter.watch(engine)
    for agent in ("a", "b", "c", "d", "a"):
        call(engine, agent, "hello")
    port = exporter.serve(0)
    found = scrape(port)
    counts = {agent: of(found, "kvcomm_requests_total", agent=agent) for agent in ("a", "b", "c", "other")}
    assert counts == {"a": 2, "b": 1, "c": 0, "other": 2}
    engine.close()
    assert of(scrape(port), "kvcomm_requests_total") == 5
    assert of(scrape(port), "kvcomm_store_tokens") == 0, "a closed engine holds nothing"
    exporter.close()


def test_one_exporter_watches_engines_of_one_model_apart() -> None:
    registry = prometheus_client.CollectorRegistry()
    exporter = PrometheusExporter(registry)
    engines = [made(make_speaker(), mode="exact") for _ in range(2)]
    for index, engine in enumerate(engines):
        exporter.watch(engine)
        for _ in range(index + 1):
            call(engine, "a", "hello")
    port = exporter.serve(0)
    found = scrape(port)
    assert of(found, "kvcomm_requests_total", model="tiny-llama") == 1
    assert of(found, "kvcomm_requests_total", model="tiny-llama #2") == 2
    with pytest.raises(ConfigError, match="served already"):
        exporter.serve(0)
    with pytest.raises(ConfigError, match="one exporter per registry"):
        PrometheusExporter(registry)
    for engine in engines:
        engine.close()
    exporter.close()
    exporter.close()
