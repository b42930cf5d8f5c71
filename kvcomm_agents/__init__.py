"""kvcomm-agents: multi-agent LLM apps, fast without being wrong.

Public names load on first use, so importing this package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from ._version import __version__
from .config import EngineConfig, ReuseConfig
from .observe.report import RequestReport
from .request import Completion, Constraint, Message, Request, SamplingParams, TextChunk, ToolSpec

if TYPE_CHECKING:
    from .engine.engine import Engine, shared_engine
    from .engine.warmup import WarmReport
    from .models.loading import LoadedModel, load_model

_LAZY = {
    "Engine": "engine.engine",
    "shared_engine": "engine.engine",
    "LoadedModel": "models.loading",
    "load_model": "models.loading",
    "WarmReport": "engine.warmup",
}

__all__ = [
    "Completion",
    "Constraint",
    "Engine",
    "EngineConfig",
    "LoadedModel",
    "Message",
    "Request",
    "RequestReport",
    "ReuseConfig",
    "SamplingParams",
    "TextChunk",
    "ToolSpec",
    "WarmReport",
    "__version__",
    "errors",
    "load_model",
    "shared_engine",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
