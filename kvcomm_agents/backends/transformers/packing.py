"""Packing: documents in one row, each seeing only itself and one shared first token.

This is the attention of AnchorAttention ("When Precision Meets Position", arXiv 2411.13476). Its parts
are plain tensors that any transformers model takes as `attention_mask` and `position_ids`: to train
with, or to compute the KV of many texts in one forward pass.

Give the 4-D mask also where `position_ids` alone would do. Without one, transformers reads packed rows
from positions that start anew, and leaves the shared first token out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...backend import Positions
from ...errors import PackError

IGNORED = -100
"""The label that transformers' losses leave out."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """One row: the shared first token, then documents.

    Args:
        ids: `[tokens]` int64.
        segments: `[tokens]` int64: 0 is the shared first token, documents count from 1.
        positions: `[tokens]` int64; the shared first token is at 0.
        edges: start and stop of every document in the row.
    """

    ids: Tensor
    segments: Tensor
    positions: Tensor
    edges: tuple[tuple[int, int], ...]

    @property
    def labels(self) -> Tensor:
        """`ids` as labels `[tokens]` (transformers shifts them): no document's first token is predicted."""
        labels = self.ids.clone()
        labels[[0, *(start for start, _ in self.edges)]] = IGNORED
        return labels


def pack(documents: Sequence[Sequence[int]], first: int, positions: Positions = "running") -> Pack:
    """Put documents into one row behind a shared first token.

    Args:
        documents: token ids of each, without a first token of their own.
        first: id of the shared first token: BOS, or what the model's prompts begin with.
        positions: see `Positions`.

    Raises:
        PackError: no documents, or an empty one.
    """
    if not documents or not all(len(document) for document in documents):
        raise PackError(f"a pack of {len(documents)} documents needs at least one, and a token in each")
    lengths = torch.tensor([1, *(len(document) for document in documents)])
    segments = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    row = torch.arange(len(segments))
    starts = lengths.cumsum(0) - lengths
    at = row if positions == "running" else torch.where(segments > 0, row - starts[segments] + 1, 0)
    ids = torch.tensor([first, *(token for document in documents for token in document)])
    stops = (starts + lengths).tolist()
    return Pack(ids, segments, at, tuple(zip(starts.tolist()[1:], stops[1:], strict=True)))


def pack_rows(
    documents: Sequence[Sequence[int]], first: int, length: int, positions: Positions = "running"
) -> list[Pack]:
    """Rows of just `length` tokens, for training: a document that does not fit goes on in the next row as one more.

    What is left over in the end fills no row and is dropped.

    Raises:
        PackError: `length` leaves no room behind the first token.
    """
    if length < 2:
        raise PackError(f"rows of {length} tokens have no room behind the shared first token; give at least 2")
    rows, row, room = list[Pack](), list[Sequence[int]](), length - 1
    for document in documents:
        rest = document
        while len(rest):
            part, rest = rest[:room], rest[room:]
            row.append(part)
            room -= len(part)
            if not room:
                rows.append(pack(row, first, positions))
                row, room = [], length - 1
    return rows


def sees(segments: Tensor, *, shared_first: bool = True) -> MaskMod:
    """Which key a query sees, as FlexAttention's `create_block_mask` wants to know it.

    Args:
        segments: of one row, as in `Pack`.
        shared_first: whether every document sees the first token; without it, documents are apart altogether.
    """

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        document = segments[query] == segments[key]
        return (key <= query) & (document | (segments[key] == 0) if shared_first else document)

    return mask


def packed_mask(segments: Tensor, *, shared_first: bool = True, dtype: torch.dtype | None = None) -> Tensor:
    """The `attention_mask` of packed rows, `[rows, 1, tokens, tokens]`.

    Args:
        segments: `[tokens]` or `[rows, tokens]`, as in `Pack`.
        shared_first: as in `sees`.
        dtype: `None` gives booleans, which SDPA takes; a float dtype gives what is added to the scores
            (0 or the lowest number), which eager attention takes as well.
    """
    rows = segments[None] if segments.dim() == 1 else segments
    order = torch.arange(rows.shape[1], device=rows.device)
    seen = rows[:, :, None] == rows[:, None, :]
    if shared_first:
        seen = seen | (rows == 0)[:, None, :]
    mask = (seen & (order[None, :] <= order[:, None]))[:, None]
    if dtype is None:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
