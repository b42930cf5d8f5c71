"""The first calls of a process, in an event loop that watches for what blocks it: `first_calls.py PACKAGE MODEL`.

Ends with an error that names what blocked, or prints `ok`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

from faces import ADD, FACES

HEAVY = ("torch", "transformers", "tokenizers")


class Watcher(MetaPathFinder):
    """Sees what is imported in a running event loop."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name.partition(".")[0] in HEAVY:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop()
                self.seen.append(name)


async def langchain(model: str) -> None:
    from langchain_core.documents import Document
    from langchain_core.messages import HumanMessage
    from langgraph.graph import END, START, MessagesState, StateGraph

    from langchain_kvcomm import ChatKVComm, WarmUp, intercept, warming

    async def speak(state: MessagesState) -> dict[str, Any]:
        llm = ChatKVComm(model=model, max_tokens=3)
        return {"messages": [await llm.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_edge(START, "speak")
    graph.add_edge("speak", END)
    app = graph.compile()
    documents = [Document("a text that is long enough to be warmed, one would think")]
    llm = ChatKVComm(model=model, max_tokens=3)
    with watching(), intercept(llm, warm=True):
        await app.ainvoke({"messages": [HumanMessage("hi")]}, {"callbacks": [WarmUp(llm)]})
        async for _ in app.astream({"messages": [HumanMessage("hi")]}, stream_mode="messages"):
            pass
        bound = llm.bind_tools([ADD.as_openai()])
        await bound.ainvoke("hi")
        assert [chunk async for chunk in bound.astream("hi")]
        await warming(llm, wait=True).ainvoke(documents)


async def other(package: str, model: str) -> None:
    face = next(kind for kind in FACES if kind.package == package)(model, max_tokens=3)
    importlib.import_module(package)
    # What a framework imports for itself when it is first used is not ours: a call that is refused brings it in.
    for ask in (face.ask, face.stream):
        with contextlib.suppress(ValueError):
            await ask([("user", "hi")], [ADD], max_tokens=0)
    assert "torch" not in sys.modules
    with watching():
        await face.stream([("user", "hi")], [ADD])
        await face.ask([("user", "hi")], [ADD])
        await face.ask([("user", "hi")])
        await face.stream([("user", "hi")])


@contextlib.contextmanager
def watching() -> Any:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            from blockbuster import blockbuster_ctx

            stack.enter_context(blockbuster_ctx())
        yield


if __name__ == "__main__":
    package, model = sys.argv[1:]
    watcher = Watcher()
    sys.meta_path.insert(0, watcher)
    asyncio.run(langchain(model) if package == "langchain_kvcomm" else other(package, model))
    if watcher.seen:
        raise SystemExit(f"imported in the event loop: {watcher.seen[:5]}")
    sys.stdout.write("ok\n")
