"""Plain: a model through transformers' own cache, driven as `generate` drives it.

For models whose contexts are not KV per token, or whose KV our cache cannot hold. Nothing of such a context can be
placed or copied out; it is served all the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

_CACHES = {
    "past_key_values": "past_key_values",
    "cache_params": "cache_params",
    "state": "state",
    "mems": "past_key_values",
    "past_buckets_states": "past_key_values",
}
"""What models call their cache in what they return, and what they want it called when they are given it."""


@dataclass(slots=True)
class PlainState:
    """A context in transformers' own cache.

    Args:
        tokens: of the context, those that wait included.
        seen: how many of them are in the cache.
        cache: keyword arguments that hand it to the model.
    """

    tokens: list[int] = field(default_factory=list)
    seen: int = 0
    cache: dict[str, Any] = field(default_factory=dict)

    def drop(self) -> None:
        """Forget the cache; the next pass computes all tokens anew."""
        self.seen, self.cache = 0, {}


class Plain:
    """Forward passes of a model over one context each.

    Args:
        model: with `prepare_inputs_for_generation`, as every model has that can generate.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        taken = inspect.signature(model.forward).parameters
        self._positions, self._keeps = "position_ids" in taken, "logits_to_keep" in taken
        self._given = next((name for name in ("past_key_values", "cache_params") if name in taken), "")
        self.pieces = True
        """Whether several tokens may follow a context at once. If not, a prompt waits until all of it is there, and
        what follows goes token by token."""

    def ways(self) -> Iterator[None]:
        """Set it to each way a context may be kept, the best first.

        That is in a cache made by the config, as `generate` does it for most models, then in what the model makes
        itself; in pieces, then token by token.
        """
        given = self._given
        for self.pieces in (True, False):
            for self._given in (given, "") if given else ("",):
                yield

    def advance(self, state: PlainState, start: int, tokens: Sequence[int], keep: int) -> Tensor:
        """Take tokens into a context; logits of the last `keep` of them, float32 `[keep, vocabulary]`.

        After a failure the context is computed anew by the next call, which may be the same one again.

        Args:
            state: of the context.
            start: position of the first.
            tokens: their ids.
            keep: with 0, and a model that wants its prompt whole, they only wait.
        """
        state.tokens[start:] = tokens
        if not keep and not self.pieces:
            return torch.empty(0, 0, device=self._model.device)
        stop = len(state.tokens)
        try:
            if self.pieces or not state.seen:
                return self._pass(state, stop, keep)
            return torch.cat([self._pass(state, end, 1) for end in range(state.seen + 1, stop + 1)])[-keep:]
        except BaseException:
            state.drop()
            raise

    def dense(self, tokens: Sequence[int]) -> Tensor:
        """Logits of a text, from a pass without a cache, float32 `[tokens, vocabulary]`.

        A model that gives them of the last token alone is asked for each.
        """
        try:
            logits = self._pass(PlainState(list(tokens)), len(tokens), len(tokens), use_cache=False)
        except Exception:  # not every model that takes positions stands them
            if not self._positions:
                raise
            self._positions = False
            return self.dense(tokens)
        if len(logits) == len(tokens):
            return logits
        ends = range(1, len(tokens) + 1)
        return torch.cat([self._pass(PlainState(list(tokens)), end, 1, use_cache=False) for end in ends])

    @torch.no_grad()
    def _pass(self, state: PlainState, stop: int, keep: int, *, use_cache: bool = True) -> Tensor:
        """Tokens up to `stop` through the model, as `generate` would feed them."""
        ids = torch.tensor([state.tokens[:stop]], device=self._model.device)
        if use_cache and self._given and not state.seen:
            state.cache = {self._given: DynamicCache(config=self._model.config.get_text_config(decoder=True))}
        asked: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "use_cache": use_cache, **state.cache}
        if self._positions:
            asked["position_ids"] = torch.arange(stop, device=ids.device)[None]
        if state.seen:
            asked["next_sequence_length"] = stop - state.seen
        fed = self._model.prepare_inputs_for_generation(ids, is_first_iteration=not state.seen, **asked)
        if self._keeps:  # some models prepare for the last token alone
            fed["logits_to_keep"] = max(keep, 1)
        output = self._model(**fed, return_dict=True)
        if use_cache:
            state.cache = {_CACHES[name]: output[name] for name in _CACHES if output.get(name) is not None}
            state.seen = stop if state.cache else 0
        logits: Tensor = output.logits[0]
        return logits[max(0, len(logits) - keep) :].float()
