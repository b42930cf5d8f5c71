"""The options that commands of `kvcomm bench` share, and the model they name. Light to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kvcomm_agents.config import DType
    from kvcomm_agents.models.loading import LoadedModel

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or any torch device.")]
Shape = Annotated[str, typer.Option(help="Random weights of this shape instead of a model: llama-8b, llama-1b.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder with the question sets; else $KVCOMM_DATA, ../shared/data, the hub.")
]
Set = Annotated[str, typer.Option("--set", help="gsm8k, humaneval or mmlu.")]
Evaluation = Annotated[int, typer.Option("--eval", min=1, help="Questions that are measured.")]
Names = Annotated[str, typer.Option(help="Which, separated by commas; all if left out.")]
Count = Annotated[int, typer.Option(min=1)]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]
Plot = Annotated[Path | None, typer.Option(help="Draw a plot to this file (needs matplotlib).")]


def chosen(names: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


def load(model: str, dtype: str, device: str = "auto", shape: str = "") -> LoadedModel:
    """The model, or random weights of a shape."""
    from kvcomm_agents.models.loading import load_model

    from .shapes import random_model

    kind: DType = dtype  # type: ignore[assignment]  # checked there
    return random_model(shape, device, kind) if shape else load_model(model, device=device, dtype=kind)
