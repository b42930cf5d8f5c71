"""kvcomm-agents for LangChain and LangGraph: one chat model, `ChatKVComm`, and what goes with it."""

from __future__ import annotations

try:
    import langchain_core  # noqa: F401 - only asks whether the extra is installed
except ImportError as error:
    raise ImportError(
        'langchain_kvcomm needs langchain-core, not installed here: pip install "kvcomm-agents[langgraph]"'
    ) from error

from .chat_models import ChatKVComm
from .intercept import intercept
from .register import register
from .warm import WarmUp, warming

__all__ = ["ChatKVComm", "WarmUp", "intercept", "register", "warming"]
