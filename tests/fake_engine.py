"""An engine without a model: words are tokens, and every answer repeats the last message.

Calls and JSON take their values from that message: its numbers, and what it says in quotes.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from kvcomm_agents.engine.warmup import WarmReport
from kvcomm_agents.observe.report import RequestReport
from kvcomm_agents.request import Completion, Message, Request, TextChunk, ToolSpec
from kvcomm_agents.text.tool_calls import PLAIN


class WordTokenizer:
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [sum(word.encode()) for word in text.split()]
        return [0, *ids] if add_special_tokens else ids


class FakeEngine:
    """Keeps every request it was given, and those that were cancelled."""

    def __init__(self, name: str = "fake", pause_s: float = 0.0) -> None:
        self.name = name
        self.pause_s = pause_s
        self.tokenizer = WordTokenizer()
        self.max_context = 1000
        self.call_format = PLAIN
        self.requests: list[Request] = []
        self.cancelled: list[Request] = []
        self.warmed: list[tuple[str, list[str]]] = []
        self.warm_error: Exception | None = None
        self.expected: list[tuple[int, str, list[str]]] = []  # after how many requests
        self.script: Callable[[Request], str | None] = lambda request: None  # what it says instead of an echo
        self._lock = threading.Lock()
        self._seen: dict[str, list[list[str]]] = {}

    def submit_warm(self, texts: Sequence[str], namespace: str = "default") -> Future[WarmReport]:
        """Done at once, if `warm_error` is not set: then it fails with that."""
        self.warmed.append((namespace, list(texts)))
        future: Future[WarmReport] = Future()
        if self.warm_error is not None:
            future.set_exception(self.warm_error)
        else:
            future.set_result(WarmReport(texts=len(texts), warmed=len(texts)))
        return future

    def settle(self, timeout_s: float | None = None) -> bool:
        """Nothing is ever put off."""
        return True

    def expect(self, texts: Sequence[str], namespace: str = "default", *, warm: bool = False) -> None:
        self.expected.append((len(self.requests), namespace, list(texts)))

    def generate(self, request: Request) -> Completion:
        return self._answer(request)[1]

    async def agenerate(self, request: Request) -> Completion:
        *_, last = [event async for event in self.astream(request)]
        assert isinstance(last, Completion)
        return last

    def stream(self, request: Request) -> Iterator[TextChunk | Completion]:
        chunks, completion = self._answer(request)
        finished = False
        try:
            yield from chunks
            finished = True
            yield completion
        finally:
            if not finished:
                self.cancelled.append(request)

    async def astream(self, request: Request) -> AsyncIterator[TextChunk | Completion]:
        chunks, completion = self._answer(request)
        finished = False
        try:
            for chunk in chunks:
                await asyncio.sleep(self.pause_s)
                yield chunk
            finished = True
            yield completion
        finally:
            if not finished:
                self.cancelled.append(request)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(range(len(_words(messages))))

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> int:
        return len(_words(messages)) + sum(len(f"{tool.description} {tool.parameters}".split()) for tool in tools)

    def _answer(self, request: Request) -> tuple[list[TextChunk], Completion]:
        heard = request.messages[-1].content if request.prompt_ids is None else "ids"
        text, reason = self.script(request) or _say(request, heard), "stop"
        for stop in request.params.stop:
            text = text.split(stop)[0]
        pieces = [word if i == 0 else " " + word for i, word in enumerate(text.split(" "))]
        limit = request.params.max_tokens
        if limit is not None and limit < len(pieces):
            pieces, reason = pieces[:limit], "length"
        prompt = _words(request.messages) if request.prompt_ids is None else [str(i) for i in request.prompt_ids]
        with self._lock:
            self.requests.append(request)
            seen = self._seen.setdefault(request.namespace, [])
            placed = max((_common(prompt[:-1], other) for other in seen), default=0)
            placed = 0 if request.reuse == "off" else placed
            seen.append(prompt)
        report = RequestReport(
            agent=request.agent or "unknown",
            prompt_tokens=len(prompt),
            computed_tokens=len(prompt) - placed,
            placed_exact_tokens=placed,
            output_tokens=len(pieces),
            finish_reason=reason,  # type: ignore[arg-type]
            namespace=request.namespace,
            conversation=request.conversation,
        )
        chunks = [TextChunk(piece, (i,)) for i, piece in enumerate(pieces)]
        spans = (f"span of {text}",)
        return chunks, Completion("".join(pieces), tuple(range(len(pieces))), report.finish_reason, report, spans)


def _say(request: Request, heard: str) -> str:
    constraint = request.constraint
    if constraint is None or request.messages[-1].role == "tool":
        return "I heard: " + heard
    if constraint.calls == "required" or (constraint.calls == "auto" and "call" in heard):
        tool = next(tool for tool in request.tools if constraint.tool in (None, tool.name))
        call = json.dumps({"name": tool.name, "arguments": _value(tool.parameters, heard)}, ensure_ascii=False)
        calls = [call, call] if "twice" in heard and constraint.parallel else [call]
        return PLAIN.open + str(PLAIN.between).join(calls) + PLAIN.close
    if constraint.schema is not None:
        return json.dumps(_value(constraint.schema, heard))
    return "I heard: " + heard


def _value(schema: dict[str, Any], heard: str) -> Any:
    kind = schema.get("type")
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], heard)
    if kind == "integer":
        return int((re.findall(r"\d+", heard) or ["1"])[0])
    if kind == "array":
        return [_value(schema["items"], heard)]
    if kind == "string":
        return (re.findall(r"'([^']*)'", heard) or ["some text"])[0]
    return {name: _value(one, heard) for name, one in schema.get("properties", {}).items()}


def _words(messages: Sequence[Message]) -> list[str]:
    return [word for message in messages for word in [f"<{message.role}>", *message.content.split(), "</>"]]


def _common(a: list[str], b: list[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
