"""Answer: what the model produced, taken apart into text and calls, whole or while it is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import IncompleteAnswerError
from ...request import Completion, Request, TextChunk
from ...text.tool_calls import Call, CallParser, CallPiece, Parsed
from .messages import KEY

if TYPE_CHECKING:
    from ...engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Args:
        text: what is no part of a call, and the beginning of a call that has no arguments yet.
        calls: in order; the last may be cut off (`complete` is false), and is then no JSON.
        completion: as the engine gave it.
        cut: what cut off a call, or an answer that was to be JSON; `None` if it is whole.
        structured: it was to be JSON, and has no call that can be made instead.
    """

    text: str
    calls: tuple[Call, ...]
    completion: Completion
    cut: str | None = None
    structured: bool = False

    @property
    def error(self) -> IncompleteAnswerError | None:
        """Why it is no structured answer; `None` if it is one, or was not to be."""
        return IncompleteAnswerError(self.cut) if self.structured and self.cut else None

    def whole(self) -> Answer:
        """Itself.

        Raises:
            IncompleteAnswerError: it was to be JSON, and was cut off.
        """
        if self.error is not None:
            raise self.error
        return self

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
        cut = {"cut": self.cut} if self.cut else {}
        return {KEY: {**self.completion.report.as_dict(), "spans": list(self.completion.spans), **cut}}


class AnswerReader:
    """Takes an answer apart while it is written.

    Args:
        request: what was asked.
        engine: who answers.
    """

    def __init__(self, request: Request, engine: Engine) -> None:
        self._request = request
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

    def finish(self, completion: Completion) -> tuple[str, list[CallPiece], Answer]:
        """Text and pieces of calls that were held back, and the whole answer."""
        if self._parser is None:
            return "", [], self._answer(Parsed(self._text), completion)
        text, pieces = self._parser.flush()
        return text, pieces, self._answer(self._parser.parsed, completion)

    def _answer(self, parsed: Parsed, completion: Completion) -> Answer:
        constraint = self._request.constraint
        structured = constraint is not None and constraint.schema is not None
        structured = structured and not any(call.complete for call in parsed.calls)
        stops, cut_at = self._request.params.stop, completion.finish_reason
        half = structured and not _is_whole(parsed.text, cut_at, stops) and (cut_at == "length" or bool(stops))
        for call in parsed.calls:
            if not call.complete:
                call.arguments = call.arguments or "{"  # so that nobody takes it for a call without arguments
        cut = _cutter(self._request, completion) if parsed.cut or half else None
        return Answer(parsed.text, tuple(parsed.calls), completion, cut, structured)


def _is_whole(text: str, reason: str, stops: Sequence[str]) -> bool:
    """Whether an answer is JSON to its end. A number might go on with what cut it."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return reason != "length" and not any(stop[0] in "0123456789." for stop in stops)
    return True


def _cutter(request: Request, completion: Completion) -> str:
    """What cut an answer off, as a sentence."""
    most = request.params.max_tokens
    if completion.finish_reason == "length":
        by = "the end of the model's context" if most is None else f"max_tokens={most}"
        by += f" (finish_reason 'length', after {completion.report.output_tokens} tokens)"
    else:
        by = f"a stop string (finish_reason {completion.finish_reason!r}, stop={list(request.params.stop)})"
    return f"the answer was cut off by {by}, and is not whole"


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
            rest, _, answer = reader.finish(event)
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
    return reader.finish(completion)[2]
