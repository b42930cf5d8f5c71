"""Sampler: the next token from a distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ...request import SamplingParams


class Sampler:
    """Chooses the next token, by transformers' own logits processors in the order `generate` applies them.

    Args:
        params: `temperature=0` takes the best token; otherwise one is drawn.
        prompt_ids: counted by the repetition penalty, as in `generate`.
        device: of the logits.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], device: torch.device) -> None:
        self._draws = params.temperature > 0
        self._processors = LogitsProcessorList()
        penalty = params.repetition_penalty
        self._ids = list(prompt_ids) if penalty is not None and penalty != 1.0 else None
        if self._ids is not None and penalty is not None:
            self._processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        if self._draws:
            self._processors.append(TemperatureLogitsWarper(params.temperature))
            if params.top_k is not None:
                self._processors.append(TopKLogitsWarper(params.top_k))
            if params.top_p is not None and params.top_p < 1:
                self._processors.append(TopPLogitsWarper(params.top_p))
            if params.min_p:
                self._processors.append(MinPLogitsWarper(params.min_p))
        self._generator = torch.Generator(device=device)
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def __call__(self, logits: Tensor) -> int:
        """The next token, from logits `[vocabulary]` in float32."""
        scores = logits[None]
        if self._processors:
            ids = torch.tensor([self._ids or [0]], device=logits.device)
            scores = self._processors(ids, scores)  # type: ignore[arg-type]  # plain tensors are what it takes
        if self._draws:
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
        else:
            token = int(scores.argmax())
        self.observe(token)
        return token

    def observe(self, token: int) -> None:
        """Count a token that was not drawn."""
        if self._ids is not None:
            self._ids.append(token)
