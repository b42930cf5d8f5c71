"""CudaGraphs: small forward passes, recorded once as CUDA graphs and played again for other contexts.

A pass over few tokens waits for its hundreds of launches, not for the GPU. Passes are laid out as `Tiles`
of a few shapes; one that comes for the second time is recorded, played at once, and held to what the
plain pass just gave. If anything differs or fails, the plain pass serves from then on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...kv.layout import KVLayout
from ...log import get_logger
from . import attention
from .attention import Part
from .kernels import launch as kernels
from .kernels import tiles
from .kernels.tiles import Tiles, TileShape, longest_tile
from .probe import tolerance

logger = get_logger(__name__)

_ROOMS = (32, 64, 96, 128, 192, 256, 384, 512)  # tokens of a shape; longer passes keep a GPU busy by themselves
_CONTEXTS = 32  # decoded together, at most
_KEPT = 16  # logits of a pass that reads prompts


class Recorded:
    """A pass of one shape.

    Args:
        model: its attention is `attention.NAME`.
        tiles: what the pass reads.
        pool: of memory, which graphs share; `None` for the first.
    """

    def __init__(self, model: PreTrainedModel, tiles: Tiles, pool: Any = None) -> None:
        self.model, self.tiles = model, tiles
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self._pool = pool

    def record(self, parts: Sequence[Part]) -> None:
        """Record it, on real parts: it runs a few times, and each time writes the same KV."""
        self.tiles.fill(parts)
        if self.tiles.layout.device.type != "cuda":  # Triton interprets, and there is nothing to record with
            return
        apart = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        apart.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(apart):
            for _ in range(2):  # kernels are compiled and libraries made ready, which must not be recorded
                self._run()
        torch.cuda.current_stream().wait_stream(apart)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._logits = self._run()
        self._graph = graph

    def play(self, parts: Sequence[Part]) -> Tensor:
        """The pass over parts; logits float32 `[kept, vocabulary]`, part by part."""
        self.tiles.fill(parts)
        if self._graph is None:
            self._logits = self._run()
        else:
            self._graph.replay()
        if self._logits is None:
            raise RuntimeError("play() before record()")
        return self._logits[: sum(part.keep for part in parts)].to(torch.float32, copy=True)

    @property
    def pool(self) -> Any:
        """The memory of its graph."""
        return None if self._graph is None else self._graph.pool()

    def _run(self) -> Tensor:
        shape = self.tiles
        return attention.call(self.model, shape.ids, shape.positions, shape.kept, shape)


class CudaGraphs:
    """The passes recorded on a model.

    Args:
        model: its attention is `attention.NAME`.
        layout: of its KV.
    """

    def __init__(self, model: PreTrainedModel, layout: KVLayout) -> None:
        self.model, self.layout = model, layout
        heads = getattr(model.config.get_text_config(decoder=True), "num_attention_heads", None)
        self.heads = heads if isinstance(heads, int) else 0  # a list, where layers differ
        self._seen: Counter[TileShape] = Counter()
        self._recorded: dict[TileShape, Recorded] = {}
        self._usable = kernels.available(layout.device) and tiles.fits(layout, self.heads)

    @property
    def shapes(self) -> tuple[TileShape, ...]:
        """Of the passes recorded so far."""
        return tuple(self._recorded)

    def play(self, parts: Sequence[Part]) -> Tensor | None:
        """The pass over parts, if one of its shape is recorded: logits float32 `[kept, vocabulary]`, part by part."""
        shape = self._shape(parts)
        recorded = self._recorded.get(shape) if shape else None
        return recorded.play(parts) if recorded else None

    def learn(self, parts: Sequence[Part], logits: Tensor) -> None:
        """A plain pass over parts gave `logits`: record the like of it, if it came before.

        What it does to the KV of the parts it does within what rounding allows.
        """
        shape = self._shape(parts)
        if shape is None or shape in self._recorded:
            return
        self._seen[shape] += 1
        if self._seen[shape] < 2:
            return
        kept = [_written(part) for part in parts]
        try:
            pool = next((one.pool for one in self._recorded.values()), None)
            recorded = Recorded(self.model, Tiles(self.layout, self.heads, shape), pool)
            recorded.record(parts)
            error = max(_error(recorded.play(parts), logits), *(map(_off, parts, kept)))
            if not error < tolerance(self.layout.dtype):
                raise RuntimeError(f"it differs by {error:.1g}")
        except Exception:
            logger.warning("passes are not recorded, because one failed; plain ones serve", exc_info=True)
            for part, (keys, values) in zip(parts, kept, strict=True):
                part.cache.keys[:, :, part.targets], part.cache.values[:, :, part.targets] = keys, values
            self._usable = False
            self._recorded.clear()
        else:
            logger.info("recorded a pass of %s", shape)
            self._recorded[shape] = recorded

    def _shape(self, parts: Sequence[Part]) -> TileShape | None:
        """The smallest shape that has room for parts; `None` if there is none."""
        if not self._usable:
            return None
        if all(len(part.tokens) == 1 for part in parts):
            room = kernels.power(len(parts))
            return TileShape(room, 1, room) if room <= _CONTEXTS else None
        tile = longest_tile(self.heads // self.layout.kv_heads)
        tokens = sum(-(-len(part.tokens) // tile) * tile for part in parts)
        if tokens > _ROOMS[-1] or sum(part.keep for part in parts) > _KEPT:
            return None
        return TileShape(next(room for room in _ROOMS if room >= tokens), tile, _KEPT)


def _written(part: Part) -> tuple[Tensor, Tensor]:
    """Copies of the keys and values that a part has computed."""
    return part.cache.keys[:, :, part.targets].clone(), part.cache.values[:, :, part.targets].clone()


def _off(part: Part, before: tuple[Tensor, Tensor]) -> float:
    return max(map(_error, _written(part), before))


def _error(one: Tensor, other: Tensor) -> float:
    """Relative to the other; 0 of nothing."""
    norm = other.float().norm()
    return float((one.float() - other.float()).norm() / norm) if other.numel() else 0.0
