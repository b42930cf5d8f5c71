"""Answer: what the model produced, taken apart into text and calls, whole or while it is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...request import Completion, Request, TextChunk
from ...text.tool_calls import Call, CallParser, CallPiece
from .messages import KEY

if TYPE_CHECKING:
    from ...engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Args:
        text: what is no part of a call.
        calls: in order; the last may be cut off (`complete` is false).
        completion: as the engine gave it.
    """

    text: str
    calls: tuple[Call, ...]
    completion: Completion

    @property
    def finish_reason(self) -> str:
        """In OpenAI's words: `tool_calls` if it stopped in order to have them run."""
        reason = self.completion.finish_reason
        return "tool_calls" if reason == "stop" and any(call.complete for call in self.calls) else reason

    @property
    def tags(self) -> dict[str, Any]:
        """For the metadata of its message: the tags of its spans, which `carried_tags` finds there."""
        return {KEY: {"spans": list(self.completion.spans)}} if self.completion.spans else {}

    @property
    def metadata(self) -> dict[str, Any]:
        """For the metadata of its message, where they are also read by people: the report, and the tags."""
        return {KEY: {**self.completion.report.as_dict(), "spans": list(self.completion.spans)}}


class AnswerReader:
    """Takes an answer apart while it is written.

    Args:
        request: what was asked.
        engine: who answers.
    """

    def __init__(self, request: Request, engine: Engine) -> None:
        self._parser = CallParser(engine.call_format) if request.tools else None
        self._text = ""

    @classmethod
    async def open(cls, request: Request, engine: Engine) -> AnswerReader:
        """One for use in an event loop: how the model writes calls is found out in a thread."""
        return await asyncio.to_thread(cls, request, engine) if request.tools else cls(request, engine)

    def push(self, chunk: TextChunk) -> tuple[str, list[CallPiece]]:
        """Text that is no part of a call, and pieces of calls."""
        if self._parser is None:
            self._text += chunk.text
            return chunk.text, []
        return self._parser.push(chunk.text)

    def finish(self, completion: Completion) -> tuple[str, Answer]:
        """Text that was held back, and the whole answer."""
        if self._parser is None:
            return "", Answer(self._text, (), completion)
        rest = self._parser.flush()
        parsed = self._parser.parsed
        return rest, Answer(parsed.text, tuple(parsed.calls), completion)


async def stream_answer(request: Request, engine: Engine) -> AsyncGenerator[str | Answer, None]:
    """Text as it is written, then the whole answer. Close it: that is what cancels the request if it still runs."""
    reader = await AnswerReader.open(request, engine)
    async with aclosing(engine.astream(request)) as events:
        async for event in events:
            if isinstance(event, TextChunk):
                text, _ = reader.push(event)
                if text:
                    yield text
                continue
            rest, answer = reader.finish(event)
            if rest:
                yield rest
            yield answer


def read_answer(completion: Completion, request: Request, engine: Engine) -> Answer:
    """A whole answer taken apart at once."""
    return _read(AnswerReader(request, engine), completion)


async def aread_answer(completion: Completion, request: Request, engine: Engine) -> Answer:
    """As `read_answer`, for use in an event loop."""
    return _read(await AnswerReader.open(request, engine), completion)


def _read(reader: AnswerReader, completion: Completion) -> Answer:
    reader.push(TextChunk(completion.text, completion.token_ids))
    return reader.finish(completion)[1]
