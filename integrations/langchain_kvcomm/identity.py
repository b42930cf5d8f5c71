"""Which agent, tenant and conversation is calling, read from what LangGraph tells every model it calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables.config import RunnableConfig, ensure_config

# Node names that prebuilt agents give to their inner nodes: they say what the node does, not who it is.
GENERIC_NODES = frozenset({"model", "agent", "tools"})


def find_agent(
    explicit: str | None = None,
    run_metadata: Mapping[str, Any] | None = None,
) -> str | None:
    """Name of the calling agent, or `None` when nothing tells it.

    In this order: `explicit`; `lc_agent_name`, which `create_agent(name=...)` sets; the innermost
    node of `langgraph_checkpoint_ns` whose name is not generic; `langgraph_node`. A generic name alone
    is no answer: two unnamed agents would be taken for one, where their system messages tell them apart.

    Args:
        explicit: what the app said, at the call or in the constructor.
        run_metadata: metadata of the run manager. LangChain gives none to `_stream`, so the context
            variable that LangGraph sets around every node is read as well; the run manager wins.
    """
    if explicit:
        return explicit
    metadata = {**(ensure_config().get("metadata") or {}), **(run_metadata or {})}
    named = metadata.get("lc_agent_name")
    if named:
        return str(named)
    nodes = [
        str(metadata.get("langgraph_node") or ""),
        *_nodes(str(metadata.get("langgraph_checkpoint_ns") or "")),
    ]
    return next((node for node in reversed(nodes) if node and node not in GENERIC_NODES), None)


def find_setting(name: str, run_metadata: Mapping[str, Any] | None = None) -> str | None:
    """A value that the app put into `configurable`, or into the metadata, of the run this call is part of.

    LangGraph hands the `configurable` of a run to its nodes, also where they stream. A model called by
    itself sees only the metadata of its own config.
    """
    config = ensure_config()
    for source in (config.get("configurable"), run_metadata, config.get("metadata")):
        value = (source or {}).get(name)
        if value is not None and value != "":
            return str(value)
    return None


def find_namespace(run_metadata: Mapping[str, Any] | None = None, config: RunnableConfig | None = None) -> Any:
    """Whose run this call is part of, as `find_setting` finds it; `None` if nothing says so.

    It is given back as it is, also if it is no namespace: an empty id must not fall into somebody else's.
    """
    given = ensure_config(config)
    for source in (given.get("configurable"), run_metadata, given.get("metadata")):
        value = (source or {}).get("kv_namespace")
        if value is not None:
            return value
    return None


def _nodes(checkpoint_ns: str) -> list[str]:
    """Node names in `outer:uuid|inner:uuid`, outermost first. Bare numbers count parallel subgraphs."""
    parts = (part.split(":", 1)[0] for part in checkpoint_ns.split("|"))
    return [name for name in parts if name and not name.isdigit()]
