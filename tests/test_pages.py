"""What README and docs show is true: snippets run, commands are understood, links lead somewhere."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from fake_engine import FakeEngine
from snippets import PAGES, ROOT, commands, links, run, snippets

from kvcomm_agents.config import EngineConfig, ReuseConfig
from kvcomm_agents.entrypoints.cli.app import app
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.observe.report import RequestReport
from kvcomm_agents.planning.ladder import LADDER

NEEDS = {
    "README.md": ("langgraph",),
    "autogen.md": ("autogen_agentchat", "agent_framework", "ag2", "autogen.oai", "llguidance"),
    "langchain.md": ("langgraph", "llguidance"),
    "operating.md": ("prometheus_client", "opentelemetry.sdk"),
}
SAYS = {
    "README.md": ("prompt_tokens",),
    "autogen.md": ("'user', 'writer', 'editor'", "prompt tokens", "cache_read_input_token", " prompt_tokens"),
    "langchain.md": ("cache_read", "prompt_tokens", "'name': 'add'", "capital=", "tenant-a 1 writer"),
    "operating.md": ("greeter: ", 'kvcomm_requests_total{agent="greeter"', "kvcomm forward", "namespaces=1"),
    "warmup.md": ("texts=1", "warmed=1"),
}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(params=["doubles", pytest.param("weights", marks=pytest.mark.weights)])
def models(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny: Callable[[str], LoadedModel]) -> None:
    """Doubles where chat clients find their engine, and engines their model; or nothing, for the default model."""
    if request.param == "doubles":
        fake = FakeEngine()
        monkeypatch.setattr("kvcomm_agents.entrypoints.clients.settings.engine_for", lambda model, config: fake)
        monkeypatch.setattr("kvcomm_agents.engine.engine.load_model", lambda name, **where: tiny("llama"))
        monkeypatch.setattr("kvcomm_agents.engine.engine.load_tokenizer", lambda name: tiny("llama").tokenizer)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_snippets_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in NEEDS.get(page.name, ()):
        pytest.importorskip(module, reason="an extra brings it")
    names = run(page)
    for name in {"engine", "watch"} & names.keys():
        names[name].close()
    said = capsys.readouterr().out
    for words in SAYS.get(page.name, ()):
        assert words in said


@every_page
def test_commands_are_understood(page: Path) -> None:
    for program, *words in commands(page):
        if program == "kvcomm":
            _parse(words)
        elif program == "make":
            assert re.search(f"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), words
        elif program == "python" and words[0].endswith(".py"):
            code = (ROOT / words[0]).read_text(encoding="utf-8")
            assert not [word for word in words if word.startswith("--") and f'"{word}"' not in code], words
        for extras in re.findall(r"^kvcomm-agents\[(.*)\]$", "\n".join(words), re.MULTILINE):
            known = importlib.metadata.metadata("kvcomm-agents").get_all("Provides-Extra") or []
            assert set(extras.split(",")) <= set(known), words


def _parse(words: list[str]) -> None:
    """Have typer parse a command line as far as running it; raises its usage error. A bare name is a mention."""
    command = typer.main.get_command(app)
    while words and (commands := getattr(command, "commands", {})) and not words[0].startswith("-"):
        command = commands[words.pop(0)]
    if words:
        command.make_context(command.name, words)


@pytest.mark.parametrize("line", ["bench fidelity --nothing 1", "bench nothing", "bench ttft --agents none"])
def test_a_wrong_command_is_seen(line: str) -> None:
    with pytest.raises(Exception, match="nothing|integer"):
        _parse(line.split())


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        assert "://" in link or link.startswith("#") or (page.parent / link.split("#")[0]).exists(), link


def test_the_readme_names_every_page() -> None:
    assert {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} <= set(links(PAGES[0]))


def test_the_page_on_structure_names_every_wing() -> None:
    text = _page("structure.md")
    wings = {path.parent.name for path in (ROOT / "kvcomm_agents").glob("*/__init__.py")}
    assert {wing for wing in wings if f"`{wing}/`" not in text} == set()


def test_the_ladder_is_as_explained() -> None:
    rows = re.findall(r"^\| `([\w ]+)` \| (.*) \| (.*) \|$", _page("how-it-works.md"), re.MULTILINE)
    assert [name for name, _, _ in rows] == [rung.name for rung in LADDER]
    for (_, computed, needs), rung in zip(rows, LADDER, strict=True):
        if not rung.maps:
            assert f"first {rung.heads} tokens of each span" in computed
            assert ("that text" in computed or "own text" in computed) is not rung.static
        assert (f"{rung.needs} measured call" in needs) == (rung.needs > 0)
        assert ("4 readings" in needs) == rung.maps
    assert f"last {LADDER[0].least} tokens" in _page("how-it-works.md")


def test_every_setting_and_field_is_explained_with_its_default() -> None:
    text = _page("tuning.md")
    for config in (ReuseConfig(), EngineConfig(), RequestReport("", 0, 0)):
        for field in dataclasses.fields(config):
            assert f"`{field.name}`" in text or field.name == "reuse", field.name
    for name in ("max_divergence", "audit_share", "min_prefix", "min_span", "min_placed"):
        default = getattr(ReuseConfig(), name)
        assert re.search(rf"^\| `{name}` \| {default} \|", text, re.MULTILINE), name


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")
