"""Optional dependencies: whether they are there, without importing them."""

from __future__ import annotations

import importlib.util

from .errors import MissingExtraError


def has_llguidance() -> bool:
    """Whether answers can be constrained."""
    try:
        return importlib.util.find_spec("llguidance") is not None
    except ValueError:  # a module that was blocked
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
