"""The parser behind `with_structured_output`: it reads whole answers, and says so of the others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers.transform import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.utils.json import parse_partial_json
from pydantic import SkipValidation

from kvcomm_agents.entrypoints.clients.messages import KEY
from kvcomm_agents.errors import IncompleteAnswerError

from .schemas import AnswerSchema


class IncompleteOutputError(OutputParserException, IncompleteAnswerError):
    """A structured answer was cut off before it was whole; the message says by what."""


class AnswerParser(BaseCumulativeTransformOutputParser[Any]):
    """Reads one structured answer.

    Streamed, an answer that is a dict or list comes as far as it is written, and an error ends it if it is cut off.
    One of a class comes once, when it is whole.
    """

    asked: Annotated[AnswerSchema | None, SkipValidation()] = None
    """What it is to be; `None` for any JSON object."""
    by_call: bool = False
    """It is the arguments of a call."""

    @property
    def _type(self) -> str:
        return "kvcomm_answer"

    def parse(self, text: str) -> Any:
        """What a text is.

        Raises:
            OutputParserException: no JSON, or not what was asked for.
        """
        return self._read(AIMessage(text))

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """What an answer is; in part, as far as it is written, or `None`.

        Raises:
            IncompleteOutputError: it was cut off.
            OutputParserException: no JSON, or not what was asked for.
        """
        message = _message(result[0])
        return self._begun(message) if partial else self._read(message)

    def _read(self, message: BaseMessage) -> Any:
        text = str(message.text)
        if cut := message.response_metadata.get(KEY, {}).get("cut"):
            raise IncompleteOutputError(cut, llm_output=text)
        try:
            value = self._of_call(message) if self.by_call else json.loads(text)
            return value if self.asked is None else self.asked.read(value)
        except ValueError as error:  # of JSON, or pydantic's
            raise OutputParserException(f"the answer is not what was asked for: {error}", llm_output=text) from error

    def _of_call(self, message: BaseMessage) -> Any:
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        if not calls or self.asked is None:
            raise ValueError("it has no call")
        return self.asked.of_arguments(calls[0]["args"])

    def _begun(self, message: BaseMessage) -> Any:
        if self.asked is not None and not self.asked.grows:
            return None
        try:
            value = self._of_call(message) if self.by_call else parse_partial_json(str(message.text))
        except (ValueError, KeyError):
            return None
        return value if isinstance(value, dict | list) else None

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        last = _Last()
        for value in super()._transform(map(last.note, input)):
            yield last.shown(value)
        yield from self._rest(last)

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        last = _Last()
        async for value in super()._atransform(last.note(chunk) async for chunk in input):
            yield last.shown(value)
        for value in self._rest(last):
            yield value

    def _rest(self, last: _Last) -> Iterator[Any]:
        """The whole answer, if it was not shown already."""
        if last.whole is not None:
            value = self._read(last.whole if isinstance(last.whole, BaseMessage) else AIMessage(last.whole))
            if last.value is None or value != last.value:
                yield value


class _Last:
    """What a stream has come to."""

    def __init__(self) -> None:
        self.whole: Any = None
        self.value: Any = None

    def note(self, chunk: str | BaseMessage) -> str | BaseMessage:
        self.whole = chunk if self.whole is None else self.whole + chunk
        return chunk

    def shown(self, value: Any) -> Any:
        self.value = value
        return value


def _message(generation: Generation) -> BaseMessage:
    return generation.message if isinstance(generation, ChatGeneration) else AIMessage(generation.text)
