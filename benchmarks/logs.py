"""Logs of real multi-agent runs as calls: each agent is asked again what it was asked, and says what it said.

Source: Who&When (ag2ai/Agents_Failure_Attribution): AutoGen group chats and Magentic-One runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.request import Message
from kvcomm_agents.text.prompt import PromptRenderer

from .calls import Call, cuts_of, tokens_of
from .data import load_rows

LOGS = ("autogen", "magentic")
# Magentic-One logs tell roles and no instructions; these are ours.
_TEAM = {
    "Orchestrator": "You are the Orchestrator of a team that solves tasks with a web browser, files and code. Keep a"
    " plan and a ledger: what is known, what is missing, who acts next and what exactly is asked of them.",
    "WebSurfer": "You are the WebSurfer. You drive a web browser: search, open pages, click, scroll. Answer with what"
    " you did and what the page shows now.",
    "FileSurfer": "You are the FileSurfer. You open local files and folders, read them and report what they hold.",
    "Assistant": "You are the Assistant. You write text and code for the task you are given, with care, and say what"
    " the result is.",
}


@dataclass(frozen=True, slots=True)
class _Turn:
    """One line of a log: `called` if a model was called for it, `heard` if later calls have it in their prompts."""

    speaker: str
    text: str
    called: bool
    heard: bool = True


def replay_calls(
    loaded: LoadedModel, name: str, logs: int, folder: Path | None = None, limit: int = 4096
) -> list[list[Call]]:
    """The calls of the first logs, in the order in which they were made.

    An agent is sent its instructions and the chat so far, its own words as the assistant's and all
    others' as the user's. Tools and people are in the chat and make no calls.

    Args:
        loaded: the model.
        name: one of `LOGS`.
        logs: how many.
        folder: as in `load_rows`.
        limit: tokens of prompt and answer; a log is left where it passes this.

    Raises:
        ConfigError: no such logs, or too few.
    """
    if name not in LOGS:
        raise ConfigError(f"there are no logs {name!r}; choose one of {', '.join(LOGS)}")
    rows = load_rows(name, folder, logs)[:logs]
    return [list(_calls(loaded, index, row, limit)) for index, row in enumerate(rows)]


def _calls(loaded: LoadedModel, request: int, row: Mapping[str, Any], limit: int) -> Iterator[Call]:
    renderer, words = PromptRenderer(loaded.tokenizer), tokens_of(loaded)
    systems: Mapping[str, str] = row.get("system_prompt") or _TEAM
    heard: list[_Turn] = []
    for turn in _turns(row["history"], systems):
        if turn.called and turn.speaker in systems and heard:
            messages = [Message("system", systems[turn.speaker])]
            messages += [
                Message("assistant" if said.speaker == turn.speaker else "user", said.text, said.speaker)
                for said in heard
            ]
            rendered, output = renderer.segments(messages), words(turn.text)
            if len(rendered.ids) + len(output) > limit:
                return
            if output:
                yield Call(request, turn.speaker, rendered.ids, output, cuts_of(rendered), continues=True)
        if turn.heard:
            heard.append(turn)


def _turns(history: Sequence[Mapping[str, Any]], systems: Mapping[str, str]) -> Iterator[_Turn]:
    for line in history:
        text = str(line["content"])
        if "name" in line:  # AutoGen: who speaks, and everybody hears it
            yield _Turn(line["name"], text, called=line["name"] in systems)
            continue
        speaker, _, aside = str(line["role"]).partition(" (")
        if aside.startswith("->"):  # part of the ledger that was written just before: said, and not asked for again
            yield _Turn(speaker, text, called=False)
        elif aside:  # the orchestrator's notes: of these only the plan is told to the others
            plan, asked = text.startswith("Initial plan"), not text.startswith("Next speaker")
            yield _Turn(speaker, text, called=asked, heard=plan)
        else:
            yield _Turn(speaker, text, called=speaker in systems)
