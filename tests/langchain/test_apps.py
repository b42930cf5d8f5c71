"""Apps written for any chat model: exact reuse changes no word, and what agents say is found where they read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
from langchain_core.messages import BaseMessage

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.models.loading import DEFAULT_MODEL
from kvcomm_agents.planning.auditor import Auditor
from kvcomm_agents.planning.namespace import Namespace
from kvcomm_agents.planning.policy import Policy
from kvcomm_agents.planning.segments import segment
from langchain_kvcomm import ChatKVComm

pytestmark = pytest.mark.weights

PATTERNS = [
    "shared_state",
    "rewrapped",
    "template",
    "role_swap",
    "reports",
    "debate",
    "fan_out",
    "sub_agent_tool",
    "handoff",
    "serialized",
    "wrapped",
]
PREBUILT = ["tool_loop", "supervisor", "swarm"]
NEEDS = {
    "sub_agent_tool": ["langchain"],
    "tool_loop": ["langchain"],
    "supervisor": ["langchain", "langgraph_supervisor"],
    "swarm": ["langchain", "langgraph_swarm"],
}
CALLS = {"handoff", *NEEDS}  # calls need room
CONFIG = EngineConfig(reuse=ReuseConfig(min_span=6, min_placed=6))


@dataclass
class Seen:
    """Tokens of each prompt, and those of them that an agent had written before."""

    prompts: list[tuple[int, int]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Looks for spans in every prompt before it is run. Nothing is tried out or learned, to be quick."""
    record, choose = Seen(), Policy.decide

    def watched(self: Policy, ids: Any, agent: str, namespace: str, mode: Any, cuts: Any = (), *rest: Any) -> Any:
        if mode != "off":
            library = self.namespace(namespace).library
            found = [one for one in segment(ids, agent, library, cuts) if one.span >= 0]
            tokens = sum(one.tokens for one in found if library[one.span].origin == "output")
            record.prompts.append((len(ids), tokens))
        return choose(self, ids, agent, namespace, mode, cuts, *rest)

    monkeypatch.setattr(Policy, "decide", watched)
    monkeypatch.setattr(Auditor, "measures", lambda *_: False)
    monkeypatch.setattr(Namespace, "learn", lambda *_: None)
    monkeypatch.setattr(Namespace, "foresee", lambda *_: None)
    return record


def plain(state: Any) -> Any:
    """A final state without what differs from run to run: ids, counts, seconds."""
    if isinstance(state, BaseMessage):
        calls = [(call["name"], call["args"]) for call in getattr(state, "tool_calls", [])]
        return state.type, state.name, state.content, calls
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(one) for one in state] if isinstance(state, list) else state


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")  # langgraph-supervisor still calls it
@pytest.mark.parametrize("name", PATTERNS + PREBUILT)
def test_exact_reuse_changes_no_word_and_spans_are_found(name: str, seen: Seen) -> None:
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package, reason="in the dev extra")
    app = import_module(f"apps.{name}")
    states = {}
    for reuse in ("off", "exact"):
        llm = ChatKVComm(
            model=DEFAULT_MODEL,
            temperature=0,
            max_tokens=40 if name in CALLS else 16,
            max_string=24,
            reuse=reuse,  # type: ignore[arg-type]
            kv_namespace=f"app {name} {reuse}",
            prefer_tools=True,
            engine_config=CONFIG,
        )
        states[reuse] = plain(app.build(llm).invoke(app.INPUT, {"recursion_limit": 12}))
    assert states["exact"] == states["off"]
    prompts, found = (sum(column) for column in zip(*seen.prompts, strict=True))
    print(f"{name}: {found} of {prompts} prompt tokens had been written by an agent before")  # noqa: T201 - for -s
    if name in PATTERNS:
        assert found, f"no span of an earlier answer found in {seen.prompts}"
