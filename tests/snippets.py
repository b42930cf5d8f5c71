"""README and docs/*.md as the tests see them: their snippets, which are run, their commands and their links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
_SHELL = ("sh", "bash", "console")


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of Python in a page; `line` is its first there, from 0, and `not_run` why it is not run."""

    line: int
    code: str
    not_run: str = ""


def snippets(page: Path) -> list[Snippet]:
    """A page's blocks of Python. `<!-- not run: REASON -->` right before a block says that it cannot be run."""
    found, before = list[Snippet](), Token("", "", 0)
    for token in _tokens(page):
        if token.type == "fence" and token.info.split()[:1] == ["python"]:
            mark = _NOT_RUN.fullmatch(before.content.strip()) if before.type == "html_block" else None
            assert token.map is not None
            found.append(Snippet(token.map[0] + 1, token.content, mark[1] if mark else ""))
        before = token
    return found


def run(page: Path) -> dict[str, Any]:
    """Run a page's snippets, top to bottom, as one module; the names it then has."""
    # Not the name of a package: what a snippet annotates is looked up in its module.
    names: dict[str, Any] = {"__name__": "page"}
    for one in snippets(page):
        if not one.not_run:
            exec(compile("\n" * one.line + one.code, page.name, "exec"), names)
    return names


def commands(page: Path) -> list[list[str]]:
    """The command lines that a page shows, in blocks or in line, as words."""
    lines: list[str] = []
    for token in _tokens(page):
        if token.type == "fence" and token.info.split()[:1] and token.info.split()[0] in _SHELL:
            lines += token.content.splitlines()
        lines += [child.content for child in token.children or () if child.type == "code_inline"]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(kvcomm|make|pip|python) ", line)]


def links(page: Path) -> list[str]:
    """Where a page's links and images lead."""
    children = [child for token in _tokens(page) for child in token.children or ()]
    return [str(child.attrs[key]) for child in children for key in ("href", "src") if key in child.attrs]


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
