"""`intercept`: a callback on everything LangChain runs here, which tells the engine what prompts are about to hold."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import islice
from typing import Any, Self
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.tracers.context import register_configure_hook
from pydantic import BaseModel

from kvcomm_agents.checks import checked, identity
from kvcomm_agents.errors import ConfigError

from .chat_models import ChatKVComm
from .identity import find_namespace

_MIN_CHARACTERS = 24  # shorter texts make no span
_MAX_CHARACTERS = 200_000
_MAX_PARTS = 10_000  # of a state that are looked at: it may hold anything
_MAX_RUNS = 1000  # watched at the same time; the oldest is then no longer

_installed: list[Interceptor] = []
_lock = threading.Lock()


def intercept(llm: ChatKVComm, *, warm: bool = False) -> Interceptor:
    """Watch all graphs and chains of this process for one model, from now on, until it is closed.

    What goes into a graph, what its nodes are given and give back, what tools answer and retrievers find
    is said to the model's engine when it is seen (`Engine.expect`): what is known of it is then embedded
    and corrected for its usual readers before the prompt that holds it comes. Answers do not change.

    Args:
        llm: as the app uses it. Weights are not loaded for this.
        warm: compute the KV of texts of which nothing is known, in idle time (`Engine.warm`).

    Returns:
        A callback handler that is installed already; `close` it, or use it as a context manager.
    """
    with _lock:
        found = next((one for one in _installed if one.llm is llm and one.warm is warm), None)
        if found is None:
            found = Interceptor(llm, warm=warm)
            _installed.append(found)
            # A default value is seen in every thread and context, unlike one that is set.
            register_configure_hook(ContextVar(f"kvcomm {id(found)}", default=found), inheritable=True)
        return found


@dataclass(slots=True)
class _Run:
    """One run of an app, with all that runs within it."""

    within: set[UUID] = field(default_factory=set)
    said: set[int] = field(default_factory=set)  # hashes of texts
    waiting: list[str] = field(default_factory=list)
    namespace: str | None = None


class Interceptor(BaseCallbackHandler):
    """See `intercept`.

    Args:
        llm: whose engine is told.
        warm: see `intercept`.
    """

    run_inline = True  # nothing here takes long: no thread is needed to call it from a loop

    def __init__(self, llm: ChatKVComm, *, warm: bool = False) -> None:
        self.llm, self.warm = llm, warm
        self._closed = False
        self._runs: OrderedDict[UUID, _Run] = OrderedDict()
        self._roots: dict[UUID, UUID] = {}
        self._guard = threading.Lock()

    def close(self) -> None:
        """See nothing from now on."""
        self._closed = True
        with _lock:
            if self in _installed:
                _installed.remove(self)
        with self._guard:
            self._runs.clear()
            self._roots.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ignore_chain(self) -> bool:
        """LangChain asks; a closed handler sees nothing."""
        return self._closed

    ignore_llm = ignore_chat_model = ignore_agent = ignore_retriever = ignore_custom_event = ignore_chain

    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The input of an app, or of a node."""
        self._begin(run_id, parent_run_id)
        node = (metadata or {}).get("langgraph_node")
        if parent_run_id is None or (node is not None and node == kwargs.get("name")):
            self._see(run_id, inputs)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """What a node, or another part of an app, gives back."""
        self._see(run_id, outputs)
        self._end(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """It is over."""
        self._end(run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        """What a tool answers."""
        self._see(parent_run_id, output)

    def on_retriever_end(
        self, documents: Sequence[Document], *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """What was found."""
        self._see(parent_run_id, documents)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Here, and not before, it can be seen for certain to which namespace a run belongs."""
        params = kwargs.get("invocation_params") or {}
        if params.get("_type") != self.llm._llm_type or params.get("model") != self.llm.model:
            return
        own = self.llm.kv_namespace
        named = params.get("kv_namespace", own)
        found = find_namespace(metadata) if named == own else named
        namespace = own if found is None else found
        try:
            checked("kv_namespace", namespace, identity)
        except ConfigError:  # the call is about to be refused
            return
        with self._guard:
            run = self._run_of(parent_run_id)
            if run is None:
                return
            if run.namespace not in (None, namespace):  # a run of several tenants: say nothing to either
                run.namespace, run.waiting = "", []
                return
            run.namespace, waiting, run.waiting = namespace, run.waiting, []
        self._say(waiting, namespace)

    def _begin(self, run_id: UUID, parent: UUID | None) -> None:
        with self._guard:
            root = self._roots.get(parent, parent) if parent is not None else run_id
            run = self._runs.get(root)
            if run is None:
                if parent is not None:  # began before this was installed
                    return
                run = self._runs[root] = _Run()
                if len(self._runs) > _MAX_RUNS:
                    self._forget(next(iter(self._runs)))
            run.within.add(run_id)
            self._roots[run_id] = root

    def _end(self, run_id: UUID) -> None:
        with self._guard:
            if run_id in self._runs:
                self._forget(run_id)
            elif run := self._run_of(run_id):
                run.within.discard(run_id)
                del self._roots[run_id]

    def _forget(self, root: UUID) -> None:
        for one in self._runs.pop(root).within:
            self._roots.pop(one, None)

    def _run_of(self, run_id: UUID | None) -> _Run | None:
        root = self._roots.get(run_id) if run_id is not None else None
        return self._runs.get(root) if root is not None else None

    def _see(self, run_id: UUID | None, value: Any) -> None:
        with self._guard:
            run = self._run_of(run_id)
            if run is None or run.namespace == "":
                return
            new = []
            for text in texts_in(value):
                if hash(text) not in run.said:
                    run.said.add(hash(text))
                    new.append(text)
            if run.namespace is None:
                run.waiting += new
                return
            namespace = run.namespace
        self._say(new, namespace)

    def _say(self, texts: Sequence[str], namespace: str) -> None:
        # An engine that was not even imported has served nothing, and `expect` would do nothing; this may be a loop.
        if texts and not self._closed and "kvcomm_agents.engine.engine" in sys.modules:
            self.llm.engine.expect(texts, namespace, warm=self.warm)


def texts_in(value: Any) -> Iterator[str]:
    """Texts in a state, an update, a command, messages or documents, long enough to be spans.

    Whole prompts are left out: it is too late for them.
    """
    waiting = deque([value])
    for _ in range(_MAX_PARTS):
        if not waiting:
            return
        one = waiting.popleft()
        if isinstance(one, str):
            if _MIN_CHARACTERS <= len(one) <= _MAX_CHARACTERS:
                yield one
        else:
            waiting += islice(_parts(one), _MAX_PARTS - len(waiting))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, BaseMessage):
        return (value.text,)
    if isinstance(value, Document):
        return (value.page_content,)
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, BaseModel) and not isinstance(value, PromptValue):
        return (getattr(value, name) for name in type(value).model_fields)
    if is_dataclass(value) and not isinstance(value, type):  # LangGraph's Command among them
        return (getattr(value, one.name) for one in fields(value))
    if type(value).__name__ == "Send":
        return (getattr(value, "arg", None),)
    return ()
