"""Who calls, read from what AutoGen's runtime tells of the handler in which a call is made."""

from __future__ import annotations

from dataclasses import dataclass

from autogen_core import MessageHandlerContext

SELECTORS = frozenset({"SelectorGroupChatManager", "MagenticOneOrchestrator"})
"""Managers that ask a model who is to speak next, by the names their teams give them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Args:
        agent: its name; `None` outside of a runtime.
        conversation: id of its team.
        selects: it chooses who speaks next.
    """

    agent: str | None = None
    conversation: str | None = None
    selects: bool = False


def find_caller() -> Caller:
    """The agent whose message handler this is. An agent run outside of a team, or as a tool, has none of its own."""
    try:
        id = MessageHandlerContext.agent_id()
    except RuntimeError:
        return Caller()
    agent = id.type.removesuffix(f"_{id.key}")  # a team calls its members `name_<team's id>`
    return Caller(agent, id.key, agent in SELECTORS)
