"""Calls: what agents ask a model, and what is said in answer, of lengths that are given. Every word is real text.

The protocol is that of the KVCOMM paper's speed tables: agents in a row, each with instructions of
its own, and each reads the question and the answers of all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.request import Message
from kvcomm_agents.text.prompt import PromptRenderer

from .data import load_rows

OPENING = "The problem of this round is the following:\n"
CLOSING = "\n\nNow give your own answer."
_SYSTEM, _USER = "\ue010", "\ue011"  # stand for contents while the template is cut


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an agent, with the answer it is made to give.

    Args:
        request: which conversation it belongs to.
        agent: who calls.
        ids: the prompt.
        output: the answer; every column is fed these tokens, whatever it would have said.
        cuts: where the messages of the prompt begin and end.
        continues: the agent's next prompt may begin with this prompt and this answer.
    """

    request: int
    agent: str
    ids: tuple[int, ...]
    output: tuple[int, ...]
    cuts: tuple[int, ...] = ()
    continues: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """Lengths in tokens: of each agent's own instructions, of the question, and of every answer."""

    agents: int = 5
    prefix: int = 512
    question: int = 1024
    output: int = 512

    def __post_init__(self) -> None:
        for name in ("agents", "prefix", "question", "output"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")

    def __str__(self) -> str:
        return f"{self.agents} agents, prefix {self.prefix}, question {self.question}, output {self.output}"


class Stream:
    """One long text, cut into pieces of as many tokens as are wanted.

    Args:
        name: in messages.
        loaded: whose tokenizer.
        texts: one after the other.
    """

    def __init__(self, name: str, loaded: LoadedModel, texts: Iterator[str]) -> None:
        self.name, self._loaded, self._texts = name, loaded, texts
        self._ids: list[int] = []
        self._at = 0

    def take(self, tokens: int) -> tuple[int, ...]:
        """The next tokens.

        Raises:
            ConfigError: there are no more.
        """
        while len(self._ids) - self._at < tokens:
            text = next(self._texts, None)
            if text is None:
                left = len(self._ids) - self._at
                raise ConfigError(
                    f"the {self.name} of the data end: {left} tokens are left and {tokens} are needed; ask for"
                    " fewer requests, fewer agents or shorter texts"
                )
            self._ids += self._loaded.tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]
        piece = tuple(self._ids[self._at : self._at + tokens])
        self._at += tokens
        return piece


def protocol_calls(
    loaded: LoadedModel, protocol: Protocol, requests: int, folder: Path | None = None
) -> list[list[Call]]:
    """The calls of every request, in order. Pieces are tokenised apart, so that lengths are what they should be.

    Instructions are system prompts of AutoGen apps, questions the passages and questions of MuSiQue,
    answers what agents said in AutoGen logs; each piece goes on where the last one ended.

    Args:
        loaded: the model.
        protocol: the lengths.
        requests: how many.
        folder: as in `load_rows`.

    Raises:
        ConfigError: the data is not there, or ends before.
    """
    logs = load_rows("autogen", folder)
    own = Stream("system prompts", loaded, (str(text) for row in logs for text in row["system_prompt"].values()))
    said = Stream("answers", loaded, (str(turn["content"]) for row in logs for turn in row["history"]))
    asked = Stream(
        "passages",
        loaded,
        (
            "\n\n".join((*(str(passage["text"]) for passage in row["ctxs"]), str(row["question"])))
            for row in load_rows("musique", folder)
        ),
    )
    begin, middle, end = frame(loaded)
    words = _words(loaded)
    prefixes = [own.take(protocol.prefix) for _ in range(protocol.agents)]
    found = []
    for request in range(requests):
        question, answers, calls = asked.take(protocol.question), list[tuple[int, ...]](), list[Call]()
        for number, prefix in enumerate(prefixes, 1):
            user = [*words(OPENING), *question]
            for place, answer in enumerate(answers, 1):
                user += [*words(f"\n\nThe output of agent {place} is as follows:\n"), *answer]
            user += words(CLOSING)
            ids = (*begin, *prefix, *middle, *user, *end)
            first = len(begin) + len(prefix) + len(middle)
            cuts = (len(begin), len(begin) + len(prefix), first, first + len(user))
            answers.append(said.take(protocol.output))
            calls.append(Call(request, f"agent {number}", ids, answers[-1], cuts))
        found.append(calls)
    return found


def frame(loaded: LoadedModel) -> tuple[tuple[int, ...], ...]:
    """What the chat template puts before, between and behind the contents of a system and a user message."""
    text = PromptRenderer(loaded.tokenizer).text([Message("system", _SYSTEM), Message("user", _USER)])
    before, _, rest = text.partition(_SYSTEM)
    between, _, behind = rest.partition(_USER)
    words = _words(loaded)
    return words(before), words(between), words(behind)


def _words(loaded: LoadedModel) -> Callable[[str], tuple[int, ...]]:
    return lambda text: tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def longest(requests: Sequence[Sequence[Call]]) -> int:
    """Tokens of the longest context."""
    return max(len(call.ids) + len(call.output) for calls in requests for call in calls)
