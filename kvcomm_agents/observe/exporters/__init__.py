"""Exporters: what the engine tells its observers, for Prometheus and OpenTelemetry. Each needs its extra.

Both are attached by `watch(engine)`, to as many engines as there are.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .otel import OpenTelemetryExporter
    from .prometheus import PrometheusExporter

_LAZY = {"OpenTelemetryExporter": "otel", "PrometheusExporter": "prometheus"}

__all__ = ["OpenTelemetryExporter", "PrometheusExporter"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
