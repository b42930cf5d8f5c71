"""Prometheus metrics of engines: counters and histograms of their requests and audits, gauges of what they hold.

Labels have few values: `model`, `agent`, how a request ended. Agents beyond the first hundred are counted
as `other`, since an agent that nobody named is named by a hash of its system message.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from ...errors import ConfigError, MissingExtraError
from ..report import AuditReport, RequestReport

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtraError(
        'metrics need prometheus-client, not installed here: pip install "kvcomm-agents[prometheus]"'
    ) from error

if TYPE_CHECKING:
    from ..watchable import Watchable

OTHER, UNNAMED = "other", "unnamed"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_NATS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class PrometheusExporter:
    """Metrics of the engines it watches, in a registry.

    Args:
        registry: of an app that serves its own metrics, often `prometheus_client.REGISTRY`; `None` makes one.
        max_agents: told apart; the rest are counted together.

    Raises:
        ConfigError: the registry holds such metrics already; one exporter watches many engines.

    Example:
        >>> exporter = PrometheusExporter()
        >>> exporter.watch(engine)
        >>> exporter.serve(9464)
    """

    def __init__(self, registry: CollectorRegistry | None = None, max_agents: int = 100) -> None:
        self.registry = registry or CollectorRegistry()
        self._max_agents = max_agents
        self._agents: set[str] = set()
        self._watched: dict[str, Watchable] = {}
        self._lock = threading.Lock()
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        who = ("model", "agent")

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"kvcomm_{name}", words, labels, registry=self.registry)

        def histogram(name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"kvcomm_{name}", words, labels, registry=self.registry, buckets=buckets)

        try:
            self.requests = counter("requests", "Requests, by how they ended.", *who, "outcome")
            self.rungs = counter("rungs", "Requests, by how much of their prompt was computed.", "model", "rung")
            self.prompt_tokens = counter("prompt_tokens", "Prompt tokens, by what was done to them.", *who, "kind")
            self.output_tokens = counter("output_tokens", "Tokens produced.", *who)
            self.spans = counter("spans_found", "Texts of others that were found in prompts.", *who)
            self.seconds = histogram("request_seconds", "From submission to the end.", _SECONDS, *who)
            self.first = histogram("time_to_first_token_seconds", "From submission on.", _SECONDS, *who)
            self.phases = histogram("phase_seconds", "Where that time went.", _SECONDS, "model", "phase")
            self.audits = counter("audits", "Audited requests, within the bound or beyond.", *who, "outcome")
            self.divergence = histogram("audit_divergence_nats", "Mean KL per token, audited.", _NATS, *who)
            self.registry.register(_Gauges(self._watched))
        except ValueError as error:
            raise ConfigError(
                f"{error}; one exporter per registry, and it watches as many engines as you like"
            ) from error

    def watch(self, engine: Watchable) -> None:
        """Count this one's requests from now on, until it is closed."""
        with self._lock:
            name = engine.name
            while name in self._watched:  # another engine of the same model
                number = name.removeprefix(engine.name).removeprefix(" #") or "1"
                name = f"{engine.name} #{int(number) + 1}"
            self._watched[name] = engine
        engine.observe(_Watch(self, name, engine.max_divergence))

    def serve(self, port: int = 9464, address: str = "127.0.0.1") -> int:
        """Answer scrapes of `http://address:port/metrics` from a thread; returns the port, for which 0 is any."""
        if self._server is not None:
            raise ConfigError(f"metrics are served already, on port {self._server[0].server_port}")
        self._server = start_http_server(port, address, self.registry)
        return self._server[0].server_port

    def close(self) -> None:
        """Serve no more. The counts stay in the registry."""
        if self._server is not None:
            server, thread = self._server
            self._server = None
            server.shutdown()
            server.server_close()
            thread.join()

    def _agent(self, name: str) -> str:
        with self._lock:
            if name not in self._agents and len(self._agents) >= self._max_agents:
                return OTHER
            self._agents.add(name)
        return name or UNNAMED

    def _forget(self, name: str) -> None:
        with self._lock:
            self._watched.pop(name, None)


class _Watch:
    """Observes one engine."""

    def __init__(self, exporter: PrometheusExporter, model: str, bound: float) -> None:
        self.exporter, self.model, self.bound = exporter, model, bound

    def on_request(self, report: RequestReport) -> None:
        to, who = self.exporter, (self.model, self.exporter._agent(report.agent))
        to.requests.labels(*who, report.finish_reason).inc()
        to.rungs.labels(self.model, report.rung).inc()
        kinds = {"computed": report.computed_tokens, "exact": report.placed_exact_tokens}
        kinds["corrected"] = report.placed_corrected_tokens
        for kind, tokens in kinds.items():
            to.prompt_tokens.labels(*who, kind).inc(tokens)
        to.output_tokens.labels(*who).inc(report.output_tokens)
        to.spans.labels(*who).inc(report.spans_found)
        to.seconds.labels(*who).observe(report.total_s)
        if report.ttft_s:
            to.first.labels(*who).observe(report.ttft_s)
        for phase, seconds in report.phases.items():
            to.phases.labels(self.model, phase).observe(seconds)

    def on_audit(self, report: AuditReport) -> None:
        who = (self.model, self.exporter._agent(report.agent))
        self.exporter.audits.labels(*who, "within" if report.divergence <= self.bound else "beyond").inc()
        self.exporter.divergence.labels(*who).observe(report.divergence)

    def close(self) -> None:
        self.exporter._forget(self.model)


class _Gauges(Collector):
    """What the watched engines hold, asked when somebody scrapes."""

    def __init__(self, engines: dict[str, Watchable]) -> None:
        self.engines = engines

    def describe(self) -> Iterator[Metric]:
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        engines = list(self.engines.items())

        def gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"kvcomm_{name}", words, labels=("model", *labels))

        def counter(name: str, words: str, *labels: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"kvcomm_{name}", words, labels=("model", *labels))

        store = gauge("store_bytes", "KV of prefixes stored.", "tier")
        tokens = gauge("store_tokens", "Tokens of prefixes stored.")
        memory = gauge("memory_bytes", "Held beside weights and running contexts, by part.", "part")
        allowed = gauge("memory_limit_bytes", "That each part may hold.", "part")
        waiting = gauge("waiting_requests", "Requests in the queue.")
        spans = gauge("spans", "Texts known, of all namespaces.")
        span_bytes = gauge("span_bytes", "Their donors' KV.")
        anchors = gauge("anchors", "Examples that corrections are learned from.")
        anchor_bytes = gauge("anchor_bytes", "Their KV.")
        audited = gauge("guard_audited_requests", "Audited requests that the guard goes by, the last 1000 at most.")
        within = gauge("guard_within_ratio", "Share of these that kept the bound on divergence.")
        idle_tokens = counter("idle_tokens", "Tokens that hidden work computed.", "kind")
        idle_seconds = counter("idle_seconds", "Seconds of the model's thread that hidden work took.", "kind")
        idle_shed = counter("idle_shed", "Pieces of hidden work that were dropped because too much waited.", "kind")
        idle_waiting = gauge("idle_waiting", "Pieces of hidden work that wait.")
        ledger = gauge("ledger_tokens", "Tokens that reuse saved, and that hidden work cost.", "entry")
        for name, engine in engines:
            held, learned, idle, account = engine.stats, engine.learned, engine.idle, engine.ledger()
            for kind, cost in idle.costs.items():
                idle_tokens.add_metric((name, kind), cost.tokens)
                idle_seconds.add_metric((name, kind), cost.seconds)
                idle_shed.add_metric((name, kind), cost.shed)
            idle_waiting.add_metric((name,), idle.waiting)
            ledger.add_metric((name, "saved"), account.saved)
            ledger.add_metric((name, "spent"), account.spent_tokens)
            store.add_metric((name, "device"), held.device_bytes)
            store.add_metric((name, "host"), held.host_bytes)
            tokens.add_metric((name,), held.tokens)
            for part in held.memory:
                memory.add_metric((name, part.name), part.used)
                allowed.add_metric((name, part.name), part.allowed)
            waiting.add_metric((name,), engine.waiting)
            spans.add_metric((name,), learned.spans)
            span_bytes.add_metric((name,), learned.span_bytes)
            anchors.add_metric((name,), learned.anchors)
            anchor_bytes.add_metric((name,), learned.anchor_bytes)
            audited.add_metric((name,), learned.audited)
            if learned.audited:
                within.add_metric((name,), 1 - learned.exceeded / learned.audited)
        yield from (store, tokens, waiting, spans, span_bytes, anchors, anchor_bytes, audited, within)
        yield from (idle_tokens, idle_seconds, idle_shed, idle_waiting, ledger, memory, allowed)
