"""LongRope: rotary factors chosen by the length of a context, and not by what happens to be in a forward pass.

Longrope has short factors for contexts up to a length and long ones beyond it, and keys made with one kind are of
no use to the other. Transformers looks at the largest position of a pass, so pieces of a long prompt would get the
short ones. Here a context has one kind from its first token on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from .cache import PlanCache

_turn = threading.Lock()
"""Rotary modules hold their factors in a buffer: passes of engines that share weights must not overlap."""


class LongRope:
    """The two kinds of contexts of a model.

    Args:
        model: its rotary embedding is longrope.
        original: tokens up to which a context has the short factors.
    """

    def __init__(self, model: PreTrainedModel, original: int) -> None:
        self.original = original
        self.recomputes = _recomputes(model, original)
        """Whether `generate` computes a context anew that outgrows the short factors; if not, its keys stay as
        they are and only new tokens get the long ones."""
        self._rotaries = [module for module in model.modules() if _is_longrope(getattr(module, "rope_type", None))]

    def begin(self, cache: PlanCache, tokens: int) -> None:
        """Choose the factors of a context that begins with a prompt of so many tokens."""
        cache.long = tokens > self.original
        cache.lasting = None if cache.long or self.recomputes else self.original

    def outgrows(self, cache: PlanCache, tokens: int) -> bool:
        """Whether a context outgrows its factors with so many tokens more, and `generate` would compute it anew."""
        return self.recomputes and not cache.long and cache.length + tokens > self.original

    @contextmanager
    def factors(self, cache: PlanCache) -> Iterator[None]:
        """Passes within are of one context, and use its factors, also where all their positions are small."""
        with _turn, ExitStack() as stack:
            for rotary in self._rotaries if cache.long else ():
                # A position beyond the original length is looked at beside the others, and its angles are dropped.
                stack.enter_context(rotary.register_forward_pre_hook(self._lengthen, with_kwargs=True))
                stack.enter_context(rotary.register_forward_hook(_shorten))
            yield

    def _lengthen(self, rotary: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": self._longer(kwargs["position_ids"])}
        return (args[0], self._longer(args[1]), *args[2:]), kwargs

    def _longer(self, positions: Tensor) -> Tensor:
        return torch.cat([positions, torch.full_like(positions[..., :1], self.original)], dim=-1)


def original_length(config: PretrainedConfig) -> int:
    """Tokens up to which contexts of an architecture have the short factors of longrope; 0 if it has none."""
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *rope.values()):
        if isinstance(parameters, Mapping) and _is_longrope(parameters.get("rope_type")):
            return int(parameters.get("original_max_position_embeddings") or 0)
    return 0


def outgrown(config: PretrainedConfig, max_context: int | None = None) -> int:
    """`original_length`, if contexts may be longer; 0 if none is, so that there is one kind of them.

    Args:
        config: of the text model.
        max_context: tokens that no context exceeds; the model's own limit if left out.
    """
    original = original_length(config)
    limit = getattr(config, "max_position_embeddings", None) or original + 1
    return original if min(limit, max_context or limit) > original else 0


def _is_longrope(kind: object) -> bool:
    """`rope_type` of a module or of rope parameters: a name, or one for each type of layer."""
    return kind == "longrope" or (isinstance(kind, Mapping) and "longrope" in kind.values())


def _shorten(rotary: nn.Module, args: object, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor[..., :-1, :] for tensor in angles)


def _recomputes(model: PreTrainedModel, original: int) -> bool:
    """What `generate` would feed the model behind a context of just the original length."""
    cache, nothing = DynamicCache(), torch.zeros(1, 1, original, 1, device=model.device)
    cache.update(nothing, nothing, 0)
    ids = torch.zeros(1, original + 1, dtype=torch.long, device=model.device)
    generator: Any = model
    fed = generator.prepare_inputs_for_generation(
        ids, next_sequence_length=1, past_key_values=cache, attention_mask=torch.ones_like(ids), use_cache=True
    )
    return int(fed["input_ids"].shape[1]) > 1
