"""Constrained decoding: which tokens may come next, so that calls and JSON are always well-formed.

A `Constraint` becomes a grammar, and llguidance (extra `tools`) says which tokens it allows. Where
it allows only one, the token is forced: it is not drawn, and costs no decode step of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ...errors import ConstraintError
from ...extras import require_llguidance
from ...forks import at_fork
from ...request import Constraint, ToolSpec
from ...text.grammar import grammar
from ...text.tool_format import CallFormat

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase


class Matcher:
    """Follows one answer through a grammar.

    Args:
        constraint: what the answer may be.
        tools: of the request.
        format: how the model writes calls.
        tokenizer: of the model.
        vocabulary: length of the model's logits.
        eos: tokens that end an answer.

    Raises:
        ConstraintError: the schema or a tool's parameters make no grammar.
        MissingExtraError: llguidance is not installed.
    """

    def __init__(
        self,
        constraint: Constraint,
        tools: Sequence[ToolSpec],
        format: CallFormat,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        eos: Collection[int],
    ) -> None:
        require_llguidance()
        from llguidance import LLMatcher

        special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        text = grammar(constraint, tools, format, special)
        self._matcher = LLMatcher(_tokenizer(tokenizer, vocabulary, eos), text, log_level=0)
        self._bits = np.zeros((1, -(-vocabulary // 32)), dtype=np.int32)
        self._vocabulary = vocabulary
        self._check()

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing may follow it."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: Tensor) -> Tensor:
        """Logits `[vocabulary]` with minus infinity for every token that may not come next."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        banned = torch.from_numpy(allowed == 0).to(logits.device)
        return logits.masked_fill(banned, float("-inf"))

    def accept(self, token: int) -> None:
        """Take a token into the answer."""
        self._matcher.consume_token(token)
        self._check()

    def forced(self) -> list[int]:
        """The tokens that must come next; empty where the model has a choice."""
        return [] if self.done else list(self._matcher.compute_ff_tokens())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the constraint cannot be followed: {self._matcher.get_error()}")


_made: WeakKeyDictionary[Any, dict[tuple[int, tuple[int, ...]], LLTokenizer]] = WeakKeyDictionary()
_lock = threading.Lock()


def _free_lock() -> None:
    """In a forked child, whoever held it is not there."""
    global _lock
    _lock = threading.Lock()


at_fork(in_child=_free_lock)


def _tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos: Collection[int]) -> LLTokenizer:
    """The form of a tokenizer that llguidance reads. It takes about a second to make, hence once for each tokenizer."""
    key = (vocabulary, tuple(sorted(eos)))
    with _lock:
        made = _made.setdefault(tokenizer, {})
        if key not in made:
            from llguidance.hf import from_tokenizer

            try:
                made[key] = from_tokenizer(cast(Any, tokenizer), n_vocab=vocabulary, eos_token=list(key[1]) or None)
            except ValueError as error:  # a tokenizer in plain Python
                raise ConstraintError(f"answers of this model cannot be constrained: {error}") from error
        return made[key]
