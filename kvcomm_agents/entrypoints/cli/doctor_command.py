"""`kvcomm doctor`. Light to import."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from ...config import EngineConfig
from .console import AsJson, DTypeName, Model, print_json, table
from .terminal import plain_errors

if TYPE_CHECKING:
    from .doctor import Sizes

doctor_app = typer.Typer()

# What is kept of each part of the budget, and how many blocks of KV a token takes there; 0 where it is no KV.
_PARTS = {
    "prefixes": ("stored prefixes", 1),
    "host_prefixes": ("stored prefixes that left the device", 1),
    "spans": ("donors of texts", 1),
    "maps": ("maps", 0),
    "anchors": ("anchors, two blocks a token", 2),
    "logits": ("kept distributions", 0),
    "spare": ("caches that wait for their next request", 1),
    "queued": ("waiting idle work", 0),
}
_COLOURS = {"ok": "green", "note": "yellow", "broken": "red"}


@doctor_app.command()
def doctor(
    model: Model = "default",
    device: Annotated[str | None, typer.Option(help="As in EngineConfig.")] = None,
    dtype: DTypeName = "auto",
    as_json: AsJson = False,
) -> None:
    """Look at this installation, the device, a model and what would fit in memory; exit code 1 if something is broken.

    Settings are those of the KVCOMM_* environment variables. No weights are loaded.
    """
    with plain_errors():
        from .doctor import examine

        config = EngineConfig.from_env()
        if device is not None:
            config = replace(config, device=device)
        if dtype != "auto":
            config = replace(config, dtype=dtype)  # type: ignore[arg-type]  # checked there
        found = examine(model, config)
        if as_json:
            sizes = asdict(found.sizes) if found.sizes else None
            print_json({"broken": found.broken, "findings": [asdict(one) for one in found.findings], "sizes": sizes})
        else:
            console = Console(soft_wrap=True)
            for one in found.findings:
                verdict = f"[{_COLOURS[one.verdict]}]{one.verdict:6}[/]"
                console.print(f"{verdict} [bold]{one.what}[/bold]: {escape(one.text)}", highlight=False)
            if found.sizes is not None and found.sizes.token_bytes:
                table("Memory", ("what", "bytes", "tokens of KV"), _rows(found.sizes, config))
        if found.broken:
            raise typer.Exit(1)


def _rows(sizes: Sizes, config: EngineConfig) -> list[tuple[str, ...]]:
    shape = f"{sizes.layers} layers x {sizes.kv_heads} heads x ({sizes.key_dim} + {sizes.value_dim})"
    rows: list[tuple[str, ...]] = [
        (f"weights, {sizes.parameters / 1e6:.0f} M parameters", decimal(sizes.weight_bytes), ""),
        (f"KV of a token, {shape}", decimal(sizes.token_bytes), "1"),
    ]
    if sizes.context:
        rows.append(("the longest request", decimal(sizes.context_bytes), f"{sizes.context:,}"))
    if sizes.budget is not None:
        for part, (what, copies) in _PARTS.items():
            size = getattr(sizes.budget, part)
            if size:
                tokens = f"{sizes.tokens_in(size // copies):,}" if copies else ""
                rows.append((what, decimal(size), tokens))
        rows.append(("all of that (memory_bytes)", decimal(sizes.budget.total), ""))
    if sizes.free_bytes:
        left = sizes.free_bytes - sizes.weight_bytes
        rows.append(("free now, less the weights", decimal(left), f"{sizes.tokens_in(left):,}"))
    return rows
