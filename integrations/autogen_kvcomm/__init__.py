"""kvcomm-agents for AutoGen: one model client, `KVCommChatCompletionClient`."""

from __future__ import annotations

try:
    import autogen_core  # noqa: F401 - only asks whether the extra is installed
except ImportError as error:
    raise ImportError(
        'autogen_kvcomm needs autogen-core, not installed here: pip install "kvcomm-agents[autogen]"'
    ) from error

from .client import KVCommChatCompletionClient

__all__ = ["KVCommChatCompletionClient"]
