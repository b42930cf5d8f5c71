"""From logits to text: sampling, stop strings, streaming detokenisation."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import (
    PreTrainedTokenizerBase,
)


class Detokenizer:
    """Tokens in, text out, never half a character.

    Args:
        tokenizer: of the model.
        keep_special: special tokens are part of the text, as models that open a tool call with one need.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, keep_special: bool = False) -> None:
        self._tokenizer, self._skip = tokenizer, not keep_special
        self._stream = DecodeStream(skip_special_tokens=self._skip)
        self._backend = tokenizer.backend_tokenizer
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text this token completes; empty while a character is unfinished."""
        self._pending.append(token)
        text = self._stream.step(self._backend, token)
        if text is None:
            return ""
        self._pending.clear()
        return str(text)

    def flush(self) -> str:
        """What is left of an unfinished character, as replacement characters."""
        rest = self._tokenizer.decode(self._pending, skip_special_tokens=self._skip) if self._pending else ""
        self._pending.clear()
        return str(rest)


class StopStrings:
    """Cuts text at the first stop string, also one that straddles pieces.

    Args:
        stops: any of these ends the text, and is not part of it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that is safe to show: nothing that may be the beginning of a stop string."""
        if not self._stops:
            return text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.hit = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
