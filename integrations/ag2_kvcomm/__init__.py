"""kvcomm-agents for AG2 1.x: one model config, `KVCommConfig`."""

from __future__ import annotations

try:
    import ag2  # noqa: F401 - only asks whether the extra is installed
except ImportError as error:
    raise ImportError('ag2_kvcomm needs ag2 1.x, not installed here: pip install "kvcomm-agents[ag2]"') from error

from .client import KVCommClient
from .config import KVCommConfig

__all__ = ["KVCommClient", "KVCommConfig"]
