"""Constrained decoding: which tokens may come next, so that calls and JSON are always well-formed.

A `Constraint` becomes a grammar, and llguidance (extra `tools`) says which tokens it allows. Where
it allows only one, the token is forced: it is not drawn, and costs no decode step of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import ConstraintError
from ...extras import require_llguidance
from ...request import Constraint, ToolSpec
from ...text.grammar import Grammar
from ...text.progress import Progress
from ...text.repeats import Repeats
from ...text.tool_format import CallFormat
from .vocabulary import Vocabulary, vocabulary_of

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from transformers import PreTrainedTokenizerBase

Allowed = npt.NDArray[np.bool_]


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
        ConstraintError: the schema or a tool's parameters make no grammar; the message says where.
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

        self._vocabulary: Vocabulary = vocabulary_of(tokenizer, vocabulary, eos)
        grammar = Grammar(constraint, tools, format, self._vocabulary.special)
        self._matcher = LLMatcher(self._vocabulary.tokens, grammar.text, log_level=0)
        self._progress = Progress(constraint, grammar, format)
        self._size, self._eos = vocabulary, frozenset(eos)
        _check(self._matcher)

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing may follow it."""
        return self._progress.ended or bool(self._matcher.is_stopped())

    def mask(self, logits: Tensor) -> Tensor:
        """Logits `[vocabulary]` with minus infinity for every token that may not come next.

        Raises:
            ConstraintError: none may.
        """
        allowed = _allowed(self._matcher, self._size)
        if (repeats := self._progress.repeats) is not None:
            allowed[self._repeating(self._matcher, allowed, repeats, self._progress.begun)] = False
            if not allowed.any():
                raise ConstraintError("the constraint cannot be followed: all that may come next is there already")
        banned = torch.from_numpy(~allowed).to(logits.device)
        return logits.masked_fill(banned, float("-inf"))

    def accept(self, token: int) -> None:
        """Take a token into the answer.

        Raises:
            ConstraintError: the grammar does not allow it.
        """
        self._matcher.consume_token(token)
        _check(self._matcher)
        if token not in self._eos:
            self._progress.push(self._vocabulary.piece(token))

    def forced(self) -> list[int]:
        """The tokens that must come next; empty where the model has a choice."""
        return [] if self.done else list(self._matcher.compute_ff_tokens())

    def _repeating(self, matcher: LLMatcher, allowed: Allowed, repeats: Repeats, begun: bytes) -> list[int]:
        """Tokens that complete a repeat, or after which one cannot be avoided.

        Args:
            matcher: where the answer stands.
            allowed: by the grammar, there.
            repeats: there.
            begun: of a character that is not in `repeats` yet.
        """
        banned, doubtful = self._sorted_out(allowed, repeats, begun)
        return [*banned, *(token for token in doubtful if self._is_repeat(matcher, token, repeats, begun))]

    def _sorted_out(self, allowed: Allowed, repeats: Repeats, begun: bytes) -> tuple[set[int], set[int]]:
        """Allowed tokens that complete a repeat, and those that may do so or lead to one."""
        texts = [text.encode() for text in repeats.forbidden()]
        texts = [text[len(begun) :] for text in texts if text.startswith(begun) and text != begun]
        banned = {token for text in texts for token in self._vocabulary.beyond(text) if allowed[token]}
        doubtful = {token for text in texts for token in self._vocabulary.into(text)}
        doubtful.update(self._vocabulary.listing(quoted=repeats.quoted))
        return banned, {token for token in doubtful - banned if allowed[token]}

    def _is_repeat(self, matcher: LLMatcher, token: int, repeats: Repeats, begun: bytes = b"") -> bool:
        """Whether a token completes a repeat, or leaves no way around one."""
        then = repeats.copy()
        then.push((begun + self._vocabulary.piece(token)).decode(errors="ignore"))
        if then.repeated or not then.watching or not then.forbidden():
            return then.repeated
        ahead = matcher.deep_copy()
        ahead.consume_token(token)
        allowed = _allowed(ahead, self._size)
        banned, doubtful = self._sorted_out(allowed, then, b"")
        if allowed.sum() > len(banned) + len(doubtful):
            return False
        return all(self._is_repeat(ahead, further, then) for further in doubtful)


def _allowed(matcher: LLMatcher, size: int) -> Allowed:
    """Which tokens may come next, bool `[vocabulary]`."""
    from llguidance.numpy import fill_next_token_bitmask

    bits = np.zeros((1, -(-size // 32)), dtype=np.int32)
    fill_next_token_bitmask(matcher, bits)
    _check(matcher)
    return np.unpackbits(bits.view(np.uint8), bitorder="little")[:size].astype(np.bool_)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise ConstraintError(f"the constraint cannot be followed: {matcher.get_error()}")
