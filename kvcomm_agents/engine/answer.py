"""Answer: tokens of one request as they come, turned into text and handed to its caller."""

from __future__ import annotations

from collections.abc import Callable

from ..request import TextChunk
from ..text.detokenizer import Detokenizer, StopStrings


class Answer:
    """The answer of one request while it is written.

    Args:
        detokenizer: makes text of tokens.
        stops: where the text ends.
        tell: given each piece of text, never half a character.
    """

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings, tell: Callable[[TextChunk], None]) -> None:
        self._detokenizer, self._stops, self._tell = detokenizer, stops, tell
        self.tokens: list[int] = []
        """All of them, those of a stop string too."""
        self._pieces: list[str] = []
        self._untold = 0

    @property
    def text(self) -> str:
        """What the caller was given so far."""
        return "".join(self._pieces)

    def take(self, token: int) -> bool:
        """Take the next token; whether more are wanted, which they are not behind a stop string."""
        self.tokens.append(token)
        self._untold += 1
        self._say(self._stops.push(self._detokenizer.push(token)))
        return not self._stops.hit

    def finish(self) -> None:
        """Hand over what was held back: an unfinished character, or what turned out to be no stop string."""
        if not self._stops.hit:
            self._say(self._stops.push(self._detokenizer.flush()) + self._stops.flush())

    def _say(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._tell(TextChunk(text, tuple(self.tokens[len(self.tokens) - self._untold :])))
            self._untold = 0
