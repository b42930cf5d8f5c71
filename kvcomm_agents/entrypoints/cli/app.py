"""The `kvcomm` command. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..._version import __version__
from ...errors import ConfigError, MissingExtraError, ReportError
from .checkout import find_benchmarks
from .console import JsonFile, Model, say, say_checked
from .doctor_command import doctor_app
from .memory_command import memory_app
from .terminal import plain_errors

app = typer.Typer(help="Reuse KV caches between the agents of one app.", no_args_is_help=True, add_completion=False)
models_app = typer.Typer(help="Models kept on this machine.", no_args_is_help=False)
app.add_typer(models_app, name="models")
app.add_typer(memory_app, name="memory")
app.add_typer(memory_app, name="store", hidden=True)  # its former name
app.add_typer(doctor_app)
if (bench_app := find_benchmarks()) is not None:
    app.add_typer(bench_app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"kvcomm-agents {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    json_path: JsonFile = None,
    model: Model = "default",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens that each agent may write.")] = 48,
) -> None:
    """Run a small multi-agent app with and without reuse, and compare."""
    with plain_errors():
        try:
            from langchain_kvcomm.demo import run_demo
        except ImportError as error:
            text = f'the demo needs LangGraph: pip install "kvcomm-agents[langgraph]" ({error})'
            raise MissingExtraError(text) from error
        run_demo(model=model, json_path=json_path, max_tokens=max_tokens)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="JSON lines, as written with EngineConfig(report_file=...).")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; else beside the file.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Draw this many calls, the newest.")] = 200,
    agent: Annotated[list[str] | None, typer.Option(help="Only this agent; may be given again.")] = None,
    conversation: Annotated[str | None, typer.Option(help="Only this thread or run.")] = None,
) -> None:
    """Draw what requests did as one HTML page."""
    with plain_errors():
        from ...observe.pictures import report_page
        from ...observe.report_file import Recorded, read_reports

        found = read_reports(file)
        requests = tuple(
            one
            for one in found.requests
            if (not agent or one.agent in agent) and conversation in (None, one.conversation)
        )
        if not requests:
            raise ReportError(f"{file} holds no such request, of {len(found.requests)} in all")
        names = {one.agent for one in requests}
        audits = tuple(audit for audit in found.audits if audit.agent in names)
        page = output or file.with_suffix(".html")
        try:
            page.write_text(report_page(Recorded(requests, audits), file.stem, last), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the page cannot be written to {page}: {error.strerror}") from error
        say(f"{len(requests)} calls: {page}")


@models_app.callback(invoke_without_command=True)
def _models(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models()


@models_app.command("list")
def list_models() -> None:
    """List the models in the cache."""
    from rich.table import Table

    from ...models.cache import cache_root, list_cached

    cached = list_cached()
    if not cached:
        say(f"no models in {cache_root()}; get the default with: kvcomm models fetch")
        return
    table = Table("name", "MB", "dtype", "from", "folder")
    for model in cached:
        size = f"{model.size / 1e6:.0f}"
        table.add_row(escape(model.name), size, model.dtype, escape(model.source), escape(str(model.folder)))
    Console().print(table)


@models_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="`default`, or a GGUF file to convert.")] = "default",
) -> None:
    """Put a model into the cache; does nothing when it is there."""
    with plain_errors():
        from ...models.loading import DEFAULT_MODEL, fetch_default, resolve

        is_default = name.lower() in ("default", DEFAULT_MODEL.lower())
        folder = fetch_default() if is_default else resolve(name)
        say(f"{name}: {folder}")


@models_app.command()
def verify() -> None:
    """Check every cached file against the hash taken when it was written; exit code 1 if one differs."""
    from ...models.cache import cache_root, list_cached
    from ...models.cache import verify as verify_folder

    bad = 0
    for model in list_cached():
        problems = verify_folder(model.folder)
        bad += bool(problems)
        say_checked(model.name, problems)
    if bad:
        say(f"delete the damaged folder in {cache_root()} and fetch the model again")
        raise typer.Exit(1)
