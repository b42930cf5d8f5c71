"""Warm-up in LangChain: what a retriever finds is computed before the agent that reads it calls."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from kvcomm_agents.checks import checked, identity
from kvcomm_agents.errors import KVCommError

from .chat_models import ChatKVComm
from .identity import find_namespace

if TYPE_CHECKING:
    from kvcomm_agents.engine.warmup import WarmReport

logger = logging.getLogger(__name__)

_MAX_RUNS = 1000  # retrievers that run at the same time; of the oldest the namespace is then forgotten

Documents = Sequence[Document]


class WarmUp(BaseCallbackHandler):
    """Warms what retrievers find, without waiting for it.

    Give it to a retriever, a chain or a graph as a callback:

        retriever.invoke("tides", {"callbacks": [WarmUp(llm)]})

    The work is done when the model has nothing else to do, so it helps where time passes before an
    agent reads the documents, or where several read them. A failure is logged and changes nothing.

    Args:
        llm: which is going to read them.
    """

    run_inline = False  # a tokenizer may have to be loaded, which is nothing for an event loop

    def __init__(self, llm: ChatKVComm) -> None:
        self.llm = llm
        self._namespaces: OrderedDict[UUID, str] = OrderedDict()
        self._guard = threading.Lock()

    def on_retriever_start(
        self,
        serialized: dict[str, Any],
        query: str,
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Whose documents they are is said here."""
        with self._guard:
            self._namespaces[run_id] = _namespace(self.llm, metadata)
            if len(self._namespaces) > _MAX_RUNS:
                self._namespaces.popitem(last=False)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Nothing was found."""
        with self._guard:
            self._namespaces.pop(run_id, None)

    def on_retriever_end(self, documents: Documents, *, run_id: UUID, **kwargs: Any) -> None:
        """What was found."""
        with self._guard:
            namespace = self._namespaces.pop(run_id, None)
        if namespace is not None:  # else nobody knows whose they are
            _submit(self.llm, documents, namespace)


def warming(llm: ChatKVComm, *, wait: bool = False) -> Runnable[Documents, Documents]:
    """A step of a chain that warms the documents which pass through it.

        chain = retriever | warming(llm) | agent

    Args:
        llm: which is going to read them.
        wait: pass them on when they are warm, not at once. Nothing is gained by it in time, unless
            several agents read them side by side.
    """

    def now(documents: Documents, config: RunnableConfig) -> Documents:
        future = _submit(llm, documents, _namespace(llm, config.get("metadata")))
        if wait and future is not None:
            futures.wait([future])
        return documents

    async def later(documents: Documents, config: RunnableConfig) -> Documents:
        future = await asyncio.to_thread(_submit, llm, documents, _namespace(llm, config.get("metadata")))
        if wait and future is not None:
            await asyncio.gather(asyncio.wrap_future(future), return_exceptions=True)
        return documents

    return RunnableLambda(now, later, name="warming")


def _namespace(llm: ChatKVComm, metadata: dict[str, Any] | None) -> str:
    given = find_namespace(metadata)
    return str(checked("kv_namespace", llm.kv_namespace if given is None else given, identity))


def _submit(llm: ChatKVComm, documents: Documents, namespace: str) -> Future[WarmReport] | None:
    try:
        future = llm.engine.submit_warm([document.page_content for document in documents], namespace)
    except KVCommError as error:  # the app must not fail because of what only makes it faster
        logger.warning("documents were not warmed: %s", error)
        return None
    future.add_done_callback(_log)
    return future


def _log(future: Future[WarmReport]) -> None:
    if not future.cancelled() and (error := future.exception()):
        logger.warning("documents were not warmed: %s", error)
