"""The engine's answers as LangChain's: whole, or streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from kvcomm_agents.request import Completion, Request, TextChunk
from kvcomm_agents.tools import CallParser, Parsed, parse

from .messages import to_response_metadata, to_usage
from .tools import to_call_chunk, to_tool_calls

if TYPE_CHECKING:
    from kvcomm_agents.engine import Engine


def to_result(completion: Completion, request: Request, engine: Engine) -> ChatResult:
    """A whole answer."""
    parsed = parse(completion.text, engine.call_format) if request.tools else Parsed(completion.text)
    calls, invalid = to_tool_calls(parsed.calls)
    message = AIMessage(
        content=parsed.text,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=to_usage(completion),
        response_metadata=to_response_metadata(completion, engine.name, calls=bool(calls)),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


class Streamed:
    """An answer in chunks: pieces of text and of calls, and an end that carries all counts.

    Args:
        request: what was asked.
        engine: who answers.
    """

    def __init__(self, request: Request, engine: Engine) -> None:
        self._model = engine.name
        self._parser = CallParser(engine.call_format) if request.tools else None

    def chunks(self, event: TextChunk | Completion) -> Iterator[ChatGenerationChunk]:
        """The chunks that an event of the engine makes."""
        if isinstance(event, TextChunk):
            text, calls = event.text, []
            if self._parser:
                text, pieces = self._parser.push(text)
                calls = [to_call_chunk(piece) for piece in pieces]
            if text or calls:
                yield ChatGenerationChunk(message=AIMessageChunk(content=text, tool_call_chunks=calls))
            return
        rest = self._parser.flush() if self._parser else ""
        if rest:
            yield ChatGenerationChunk(message=AIMessageChunk(content=rest))
        called = self._parser is not None and any(call.complete for call in self._parser.parsed.calls)
        message = AIMessageChunk(
            content="",
            usage_metadata=to_usage(event),
            response_metadata=to_response_metadata(event, self._model, calls=called),
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=message)
