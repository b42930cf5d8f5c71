"""Vocabulary: the bytes of a tokenizer's tokens, and which tokens lead into a text."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from ...errors import ConstraintError
from ...forks import at_fork

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase


class Vocabulary:
    """The tokens of a tokenizer, as llguidance and as their bytes.

    Args:
        tokenizer: of the model.
        size: length of the model's logits.
        eos: tokens that end an answer.

    Raises:
        ConstraintError: a tokenizer that llguidance cannot read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, eos: Collection[int]) -> None:
        from llguidance.hf import from_tokenizer

        self.special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        """Special tokens, which no text makes, and their ids."""
        try:
            self.tokens: LLTokenizer = from_tokenizer(cast(Any, tokenizer), n_vocab=size, eos_token=sorted(eos) or None)
        except ValueError as error:  # a tokenizer in plain Python
            raise ConstraintError(f"answers of this model cannot be constrained: {error}") from error
        self._size = size
        self._special = {index: token.encode() for token, index in self.special.items()}
        self._sorted: list[tuple[bytes, int]] | None = None
        self._listing: dict[bool, list[int]] = {}

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        return self._special[token] if token in self._special else bytes(self.tokens.decode_bytes([token]))

    def beyond(self, text: bytes) -> list[int]:
        """Tokens that write a text, and perhaps more."""
        pieces = self._pieces()
        at = bisect_left(pieces, (text, -1))
        found = []
        while at < len(pieces) and pieces[at][0].startswith(text):
            found.append(pieces[at][1])
            at += 1
        return found

    def into(self, text: bytes) -> list[int]:
        """Tokens that write the beginning of a text, and not all of it."""
        pieces = self._pieces()
        found = []
        for length in range(1, len(text)):
            at = bisect_left(pieces, (text[:length], -1))
            while at < len(pieces) and pieces[at][0] == text[:length]:
                found.append(pieces[at][1])
                at += 1
        return found

    def listing(self, *, quoted: bool) -> list[int]:
        """Tokens that may end an item, be the next or begin it: they have a comma, and a quote if one has to come."""
        if quoted not in self._listing:
            signs = [b",", b'"'] if quoted else [b","]
            self._listing[quoted] = [token for piece, token in self._pieces() if all(sign in piece for sign in signs)]
        return self._listing[quoted]

    def _pieces(self) -> list[tuple[bytes, int]]:
        if self._sorted is None:  # not for every tokenizer: it is a loop over all tokens
            pieces = [(self.piece(token), token) for token in range(self._size) if token not in self._special]
            self._sorted = sorted(piece for piece in pieces if piece[0])
        return self._sorted


_made: WeakKeyDictionary[Any, dict[tuple[int, tuple[int, ...]], Vocabulary]] = WeakKeyDictionary()
_lock = threading.Lock()


def _free_lock() -> None:
    """In a forked child, whoever held it is not there."""
    global _lock
    _lock = threading.Lock()


at_fork(in_child=_free_lock)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, size: int, eos: Collection[int]) -> Vocabulary:
    """The vocabulary of a tokenizer. It takes about a second to make, hence once for each tokenizer.

    Raises:
        ConstraintError: a tokenizer that llguidance cannot read.
    """
    key = (size, tuple(sorted(eos)))
    with _lock:
        made = _made.setdefault(tokenizer, {})
        if key not in made:
            made[key] = Vocabulary(tokenizer, size, eos)
        return made[key]
