"""The engine's answers as LangChain's: whole, or streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from kvcomm_agents.entrypoints.clients.answers import AnswerReader, read_answer
from kvcomm_agents.request import Completion, Request, TextChunk

from .messages import to_response_metadata, to_usage
from .tools import to_call_chunk, to_cut_chunks, to_tool_calls

if TYPE_CHECKING:
    from kvcomm_agents.engine.engine import Engine


def to_result(completion: Completion, request: Request, engine: Engine) -> ChatResult:
    """A whole answer."""
    answer = read_answer(completion, request, engine)
    calls, invalid = to_tool_calls(answer.calls)
    message = AIMessage(
        content=answer.text,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=to_usage(completion),
        response_metadata=to_response_metadata(answer, engine.name),
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
        self._reader = AnswerReader(request, engine)

    def chunks(self, event: TextChunk | Completion) -> Iterator[ChatGenerationChunk]:
        """The chunks that an event of the engine makes."""
        if isinstance(event, TextChunk):
            text, pieces = self._reader.push(event)
            if text or pieces:
                calls = [to_call_chunk(piece) for piece in pieces]
                yield ChatGenerationChunk(message=AIMessageChunk(content=text, tool_call_chunks=calls))
            return
        rest, pieces, answer = self._reader.finish(event)
        calls = [*map(to_call_chunk, pieces), *to_cut_chunks(answer.calls)]
        if rest or calls:
            yield ChatGenerationChunk(message=AIMessageChunk(content=rest, tool_call_chunks=calls))
        message = AIMessageChunk(
            content="",
            usage_metadata=to_usage(event),
            response_metadata=to_response_metadata(answer, self._model),
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=message)
