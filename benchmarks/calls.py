"""Calls: what agents ask a model, and what is said in answer, of lengths that are given. Every word is real text.

The protocol is that of the KVCOMM paper's speed tables: agents in a row, each with instructions of
its own, and each reads the question and the answers of all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice
from pathlib import Path

from kvcomm_agents.errors import ConfigError
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.request import Message
from kvcomm_agents.text.prompt import PromptRenderer, Rendered

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
        output: the answer; whoever serves it is fed these tokens, whatever it would have said.
        cuts: where the messages of the prompt begin and end.
        continues: the agent's next prompt may begin with this prompt and this answer.
    """

    request: int
    agent: str
    ids: tuple[int, ...]
    output: tuple[int, ...]
    cuts: tuple[int, ...] = ()
    continues: bool = False


def cuts_of(rendered: Rendered) -> tuple[int, ...]:
    """Where the messages of a rendered prompt begin and end."""
    return tuple(edge for part in rendered.parts for edge in (part.start, part.stop))


@dataclass(frozen=True, slots=True)
class Protocol:
    """Lengths in tokens: of each agent's own instructions, of the question, and of every answer."""

    agents: int = 5
    prefix: int = 512
    question: int = 1024
    output: int = 512

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(f"{field.name}={getattr(self, field.name)} must be at least 1")

    def __str__(self) -> str:
        return f"{self.agents} agents, prefix {self.prefix}, question {self.question}, output {self.output}"


def cutter(
    name: str, words: Callable[[str], tuple[int, ...]], texts: Iterable[str]
) -> Callable[[int], tuple[int, ...]]:
    """Cuts one text after the other into pieces of as many tokens as are wanted; raises ConfigError at their end."""
    ids = chain.from_iterable(words(text + "\n\n") for text in texts)

    def take(tokens: int) -> tuple[int, ...]:
        piece = tuple(islice(ids, tokens))
        if len(piece) < tokens:
            raise ConfigError(
                f"the {name} of the data end: {len(piece)} tokens are left and {tokens} are needed; ask for fewer"
                " requests, fewer agents or shorter texts"
            )
        return piece

    return take


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
    logs, words = load_rows("autogen", folder), tokens_of(loaded)
    own = cutter("system prompts", words, (str(text) for row in logs for text in row["system_prompt"].values()))
    said = cutter("answers", words, (str(turn["content"]) for row in logs for turn in row["history"]))
    asked = cutter(
        "passages",
        words,
        (
            "\n\n".join((*(str(passage["text"]) for passage in row["ctxs"]), str(row["question"])))
            for row in load_rows("musique", folder)
        ),
    )
    prefixes = [own(protocol.prefix) for _ in range(protocol.agents)]
    found = []
    for request in range(requests):
        user, calls = (*words(OPENING), *asked(protocol.question)), list[Call]()
        for number, prefix in enumerate(prefixes, 1):
            answer = said(protocol.output)
            calls.append(framed(loaded, request, f"agent {number}", prefix, (*user, *words(CLOSING)), answer))
            user = (*user, *words(f"\n\nThe output of agent {number} is as follows:\n"), *answer)
        found.append(calls)
    return found


def framed(
    loaded: LoadedModel,
    request: int,
    agent: str,
    system: Sequence[int],
    user: Sequence[int],
    output: Sequence[int],
) -> Call:
    """A call whose two messages are given as token ids, in the frame of the chat template."""
    text = PromptRenderer(loaded.tokenizer).text([Message("system", _SYSTEM), Message("user", _USER)])
    before, _, rest = text.partition(_SYSTEM)
    between, _, behind = rest.partition(_USER)
    begin, middle, end = map(tokens_of(loaded), (before, between, behind))
    first = len(begin) + len(system) + len(middle)
    cuts = (len(begin), len(begin) + len(system), first, first + len(user))
    return Call(request, agent, (*begin, *system, *middle, *user, *end), tuple(output), cuts)


def tokens_of(loaded: LoadedModel) -> Callable[[str], tuple[int, ...]]:
    """What makes token ids of a text, without special tokens."""
    return lambda text: tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def text_of(loaded: LoadedModel, answer: Sequence[int]) -> str:
    """An answer as an app passes it on: without special tokens and the white space around it."""
    return str(loaded.tokenizer.decode(list(answer), skip_special_tokens=True)).strip()
