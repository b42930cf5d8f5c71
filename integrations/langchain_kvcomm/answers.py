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


def to_result(completion: Completion, request: Request, engine: Engine, *, parsed: bool = False) -> ChatResult:
    """A whole answer.

    Args:
        completion: of the engine.
        request: what was asked.
        engine: who answered.
        parsed: somebody reads a structured answer, and sees in its metadata that it was cut off.

    Raises:
        IncompleteAnswerError: a structured answer was cut off, and nobody would see.
    """
    answer = read_answer(completion, request, engine)
    if not parsed:
        answer.whole()
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
        parsed: as of `to_result`.
    """

    def __init__(self, request: Request, engine: Engine, *, parsed: bool = False) -> None:
        self._model, self._parsed = engine.name, parsed
        self._reader = AnswerReader(request, engine)

    def chunks(self, event: TextChunk | Completion) -> Iterator[ChatGenerationChunk]:
        """The chunks that an event of the engine makes.

        Raises:
            IncompleteAnswerError: as `to_result`, at the end.
        """
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
        if not self._parsed:
            answer.whole()
