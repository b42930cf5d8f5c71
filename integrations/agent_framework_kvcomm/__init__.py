"""kvcomm-agents for Microsoft Agent Framework: one chat client, `KVCommChatClient`."""

from __future__ import annotations

try:
    import agent_framework  # noqa: F401 - only asks whether the extra is installed
except ImportError as error:
    raise ImportError(
        "agent_framework_kvcomm needs agent-framework-core, not installed here:"
        ' pip install "kvcomm-agents[agent-framework]"'
    ) from error

from .client import KVCommChatClient

__all__ = ["KVCommChatClient"]
