"""OpenTelemetry traces of engines: a span for each request, with one for each of its phases; and for each audit.

Requests are children of whatever span was current where they were submitted. Attributes are the report's
fields as `kvcomm.*`, and those for which OpenTelemetry has a name (`gen_ai.*`) under that too.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ...errors import MissingExtraError
from ..report import AuditReport, RequestReport

try:
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError as error:
    raise MissingExtraError(
        'traces need opentelemetry, not installed here: pip install "kvcomm-agents[otel]"'
    ) from error

from ..._version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

    from ..watchable import Watchable

_AUDITED = ("agent", "namespace", "rung", "divergence", "predicted")


class OpenTelemetryExporter:
    """Spans of the requests of the engines it watches.

    Args:
        provider: makes the spans and sends them on; `None` takes the process's.

    Example:
        >>> OpenTelemetryExporter(provider).watch(engine)
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("kvcomm_agents", __version__, provider)

    def watch(self, engine: Watchable) -> None:
        """Trace this one's requests from now on, until it is closed."""
        engine.observe(_Watch(self._tracer, engine.name))


class _Watch:
    """Observes one engine."""

    def __init__(self, tracer: Tracer, model: str) -> None:
        self._tracer, self._model = tracer, model

    def on_request(self, report: RequestReport) -> None:
        start = round(1e9 * report.started_at)
        span = self._tracer.start_span(
            f"chat {report.model}",
            kind=SpanKind.INTERNAL,
            attributes=_attributes(report),
            start_time=start,
        )
        at, inside = start, trace.set_span_in_context(span)
        for phase, seconds in report.phases.items():
            end = at + round(1e9 * seconds)
            self._tracer.start_span(f"kvcomm {phase}", inside, start_time=at).end(end)
            at = end
        if report.finish_reason in ("error", "timeout"):
            span.set_status(Status(StatusCode.ERROR, report.error))
        span.end(start + round(1e9 * report.total_s))

    def on_audit(self, report: AuditReport) -> None:
        now = time.time_ns()
        attributes = {f"kvcomm.{name}": getattr(report, name) for name in _AUDITED}
        self._tracer.start_span(
            "kvcomm audit", attributes={**attributes, "kvcomm.model": self._model}, start_time=now
        ).end(now)

    def close(self) -> None:
        """The provider is its owner's to shut down."""


def _attributes(report: RequestReport) -> dict[str, str | int | float | tuple[str, ...]]:
    found: dict[str, str | int | float | tuple[str, ...]] = {
        f"kvcomm.{name}": value for name, value in report.as_dict().items() if value is not None and value != ""
    }
    found |= {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": report.model,
        "gen_ai.usage.input_tokens": report.prompt_tokens,
        "gen_ai.usage.output_tokens": report.output_tokens,
        "gen_ai.response.finish_reasons": (report.finish_reason,),
    }
    if report.agent:
        found["gen_ai.agent.name"] = report.agent
    if report.conversation:
        found["gen_ai.conversation.id"] = report.conversation
    if report.error:
        found["error.type"] = report.error.partition(":")[0]
    return found
