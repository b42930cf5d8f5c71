"""`kvcomm memory`: what engines saved, looked at and cleared. Light to import, and loads no model."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ...errors import ConfigError
from .console import AsJson, print_json, say, say_checked, table
from .terminal import plain_errors

if TYPE_CHECKING:
    from ...correction.saved.folders import Saved

memory_app = typer.Typer(help="Saved memory: anchors, maps and audits of a memory_folder.", no_args_is_help=True)

Folder = Annotated[Path | None, typer.Argument(help="A memory_folder; else $KVCOMM_MEMORY_FOLDER.")]
Model = Annotated[str | None, typer.Option(help="Only of this model, by the name it was given.")]
Namespace = Annotated[str | None, typer.Option(help="Only of this namespace.")]
Id = Annotated[str | None, typer.Option("--id", help="Only this one, by the beginning of its id.")]


@memory_app.command("list")
@memory_app.command("ls", hidden=True)
def list_saved(
    folder: Folder = None, model: Model = None, namespace: Namespace = None, one: Id = None, as_json: AsJson = False
) -> None:
    """List what is saved: one line for each model and namespace."""
    with plain_errors():
        saved = _chosen(folder, model, namespace, one)
        if as_json:
            print_json([_record(each) for each in saved])
        else:
            _list(saved, f"{_root(folder)}: {len(saved)} saved")


@memory_app.command()
def stats(
    folder: Folder = None, model: Model = None, namespace: Namespace = None, one: Id = None, as_json: AsJson = False
) -> None:
    """What is kept of each agent: anchors, their sizes, audits and the divergence they measured."""
    with plain_errors():
        from ...correction.saved.folders import agents_of, bytes_of

        records = []
        for each in _chosen(folder, model, namespace, one):
            agents, sizes = agents_of(each), bytes_of(each)
            records.append({**_record(each), "bytes_by_kind": sizes, "agents": [asdict(agent) for agent in agents]})
            if as_json:
                continue
            rows = [
                (
                    escape(agent.agent),
                    *(str(count) for count in (agent.places, agent.anchors, agent.tokens)),
                    _mb(agent.bytes),
                    str(agent.audits),
                    "" if agent.divergence is None else f"{agent.divergence:.4f}",
                )
                for agent in agents
            ]
            columns = ("agent", "places", "anchors", "tokens", "MB", "audits", "mean KL")
            kinds = ", ".join(f"{kind} {_mb(size)} MB" for kind, size in sizes.items())
            table(f"{escape(_title(each))}: {kinds}", columns, rows)
        if as_json:
            print_json(records)


@memory_app.command()
def verify(
    folder: Folder = None, model: Model = None, namespace: Namespace = None, one: Id = None, as_json: AsJson = False
) -> None:
    """Check every file against its manifest; exit code 1 if anything is damaged. An engine starts without what is."""
    with plain_errors():
        from ...correction.saved.folders import verify_saved

        found = [(each, verify_saved(each)) for each in _chosen(folder, model, namespace, one)]
        if as_json:
            print_json([{"id": each.folder.name, "problems": problems} for each, problems in found])
        else:
            for each, problems in found:
                say_checked(_title(each), problems)
        if any(problems for _, problems in found):
            raise typer.Exit(1)


@memory_app.command()
def clear(
    folder: Folder = None,
    model: Model = None,
    namespace: Namespace = None,
    one: Id = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what is saved, after asking. An engine that runs saves its own again when it is closed."""
    with plain_errors():
        from ...correction.saved.folders import clear_saved

        saved = _chosen(folder, model, namespace, one)
        if not saved:
            say(f"nothing to remove in {_root(folder)}")
            return
        _list(saved, f"{_root(folder)}: to be removed")
        if not yes and not typer.confirm(f"Remove {'this' if len(saved) == 1 else f'these {len(saved)}'}?"):
            say("nothing was removed")
            raise typer.Exit(1)
        freed = sum(clear_saved(each) for each in saved)
        say(f"removed {len(saved)}, {_mb(freed)} MB")


def _root(folder: Path | None) -> Path:
    if folder is not None:
        return folder.expanduser()
    if named := os.environ.get("KVCOMM_MEMORY_FOLDER"):
        return Path(named).expanduser()
    raise ConfigError("name the memory_folder, or set KVCOMM_MEMORY_FOLDER")


def _chosen(folder: Path | None, model: str | None, namespace: str | None, one: str | None) -> list[Saved]:
    from ...correction.saved.folders import find_saved

    chosen = []
    for each in find_saved(_root(folder)):
        owner = each.manifest.owner if each.manifest else None
        wanted = ((model, owner and owner.model), (namespace, owner and owner.namespace))
        if all(name in (None, known) for name, known in wanted) and each.folder.name.startswith(one or ""):
            chosen.append(each)
    if one is not None and len(chosen) != 1:
        raise ConfigError(f"--id {one} is the beginning of {len(chosen)} ids in {_root(folder)}")
    return chosen


def _record(saved: Saved) -> dict[str, Any]:
    record: dict[str, Any] = {"id": saved.folder.name, "folder": str(saved.folder), "bytes": saved.bytes}
    if saved.manifest is None:
        return {**record, "problem": saved.problem}
    manifest = saved.manifest
    return {
        **record,
        **asdict(manifest.owner),
        "anchors": len(manifest.anchors),
        "made_at": manifest.made_at,
        "saved_at": manifest.saved_at,
        "version": manifest.version,
        "problem": "",
    }


def _list(saved: list[Saved], title: str) -> None:
    rows = list[tuple[str, ...]]()
    for each in saved:
        manifest = each.manifest
        if manifest is None:
            rows.append((each.folder.name, "cannot be read: see `verify`", "", "", "", _mb(each.bytes), "", ""))
            continue
        owner = manifest.owner
        cells = (owner.model, owner.namespace, owner.tokenizer[:8], str(len(manifest.anchors)), _mb(each.bytes))
        rows.append((each.folder.name, *map(escape, cells), _local(manifest.made_at), _local(manifest.saved_at)))
    table(escape(title), ("id", "model", "namespace", "tokenizer", "anchors", "MB", "made", "saved"), rows, words=4)


def _title(saved: Saved) -> str:
    if saved.manifest is None:
        return saved.folder.name
    owner = saved.manifest.owner
    return f"{saved.folder.name} ({owner.model}, namespace {owner.namespace})"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _local(time: str) -> str:
    """ISO 8601 as a clock on this machine shows it."""
    from datetime import datetime

    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M")
