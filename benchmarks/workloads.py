"""Workloads: all calls of an app in the order in which they come: of a team, of the paper's protocol, of real logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvcomm_agents.backends.transformers.backend import TransformersBackend
from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.text.prompt import PromptRenderer

from .calls import Call, Protocol, cuts_of, protocol_calls, text_of
from .chain import messages
from .dense import DenseAnswers
from .logs import LOGS, replay_calls
from .session import Session
from .team import Team
from .teams import TEAMS

FIVE = "five"
"""The workload of the paper's speed tables."""
NAMES = (*TEAMS, FIVE, *LOGS)
MAX_TOKENS = 64
"""Of an answer of a team's agent."""


def load_calls(name: str, session: Session, requests: int, folder: Path | None, limit: int) -> list[list[Call]]:
    """The calls of each request, each with the answer that it is made to give.

    Teams answer as the model does when it is prefilled densely; the others say what their data says.

    Args:
        name: one of `NAMES`.
        session: has the model.
        requests: how many; of logs, whole logs.
        folder: as in `data.load_rows`.
        limit: tokens of a prompt and its answer; a log ends where it passes this.

    Raises:
        ConfigError: there is no such text, or less of it.
    """
    if name in LOGS:
        logs = [log for log in replay_calls(session.loaded, name, requests, folder, limit) if log]
        if not logs:
            raise ConfigError(f"no call of {name} fits into {limit} tokens; raise --limit")
        return logs
    if name == FIVE:
        return protocol_calls(session.loaded, Protocol(), requests, folder)
    backend = TransformersBackend(session.loaded)
    answers = DenseAnswers(session.loaded, backend, MAX_TOKENS, session.say)

    def tell(done: int, total: int) -> None:
        session.tell(f"{name}: dense answers, agent by agent", done, total)

    return team_calls(session.loaded, TEAMS[name], answers, requests, folder, tell)


def team_calls(
    loaded: LoadedModel,
    team: Team,
    answers: DenseAnswers,
    requests: int,
    folder: Path | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Call]]:
    """The calls of a team. An agent is asked for all requests at once, since these know nothing of each other.

    Raises:
        ConfigError: there is no text for so many requests.
    """
    renderer = PromptRenderer(loaded.tokenizer)
    texts = [dict(own) for own in team.texts(requests, folder)]
    calls: list[list[Call]] = [[] for _ in texts]
    for done, agent in enumerate(team.agents, 1):
        prompts = [renderer.segments(messages(agent, own)) for own in texts]
        outputs = answers.of([prompt.ids for prompt in prompts])
        for request, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            calls[request].append(Call(request, agent.name, prompt.ids, output, cuts_of(prompt)))
            texts[request][agent.name] = text_of(loaded, output)
        tell(done, len(team.agents))
    return calls
