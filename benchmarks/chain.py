"""The measured requests: what each agent is asked, and what it answers when prefilled densely.

Answers are greedy and kept on disk, so a run that was killed goes on where it stopped, and every
measurement sees the same ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.errors import PromptError
from kvcomm_agents.kv.span_index import SpanIndex
from kvcomm_agents.models.cache import cache_root
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.request import Message
from kvcomm_agents.text.prompt import PromptRenderer

from .team import QUESTION, Agent, Span

MAX_NEW = 72
MIN_SPAN = 12


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `start:stop` of a prompt that are its agent's own text, or another's.

    Args:
        start: first token.
        stop: behind the last.
        name: of the span; of own text, how many spans stand before it.
        shared: whether it is a span.
        offset: its first token is this one of the span.
    """

    start: int
    stop: int
    name: str
    shared: bool
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """One request, and what a dense greedy run answered.

    Args:
        question: index of the question.
        agent: who is asked.
        ids: the prompt.
        pieces: in prompt order; tokens in none of them are a mixture, or too short to be known again.
        output: the answer.
        stopped: it ended by itself, so the token that ends it was predicted too.
        cuts: where the messages of the prompt begin and end.
    """

    question: int
    agent: str
    ids: tuple[int, ...]
    pieces: tuple[Piece, ...]
    output: tuple[int, ...]
    stopped: bool
    cuts: tuple[int, ...] = ()

    @property
    def fed(self) -> tuple[int, ...]:
        """The output tokens that went through the model; each predicts one more."""
        return self.output if self.stopped else self.output[:-1]

    @property
    def spans(self) -> tuple[Piece, ...]:
        """The pieces that came from elsewhere."""
        return tuple(piece for piece in self.pieces if piece.shared)

    @property
    def prefix(self) -> int:
        """Tokens before the first span: the same in every prompt of this agent."""
        return self.spans[0].start if self.spans else self.pieces[0].stop


@dataclass(frozen=True, slots=True)
class Composed:
    """A prompt's text with the characters of its pieces: `(name, shared, begin, end)`."""

    text: str
    places: tuple[tuple[str, bool, int, int], ...]


class Chain:
    """Prompts of a team on one model, and its dense answers.

    Args:
        loaded: the model.
        runner: on that model.
        agents: in the order in which they answer.
        max_new: tokens of an answer, at most.
        folder: for answers; `None` takes the user's cache.
        silent: agents who are asked and whose answer nobody needs.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        runner: Runner,
        agents: Sequence[Agent],
        max_new: int = MAX_NEW,
        folder: Path | None = None,
        silent: Sequence[str] = (),
    ) -> None:
        self.loaded, self.runner, self.agents, self.max_new = loaded, runner, tuple(agents), max_new
        self.silent = frozenset(silent)
        self.renderer = PromptRenderer(loaded.tokenizer)
        described = repr((loaded.fingerprint, self.agents, max_new))
        self.key = hashlib.blake2b(described.encode(), digest_size=8).hexdigest()
        self.file = (folder or cache_root() / "bench") / f"answers-{self.key}.jsonl"
        self._known = read_lines(self.file, "question")
        eos = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
        eos = loaded.tokenizer.eos_token_id if eos is None else eos
        self._eos = frozenset([eos] if isinstance(eos, int) else eos or ())

    def run(self, questions: Sequence[str], tell: Callable[[int], None] = lambda done: None) -> list[list[Instance]]:
        """Every agent's request for every question.

        Args:
            questions: their texts.
            tell: called with the number of questions done.
        """
        found = []
        for index, question in enumerate(questions):
            found.append(self._question(index, question))
            tell(index + 1)
        return found

    def _question(self, index: int, question: str) -> list[Instance]:
        key = hashlib.blake2b(question.encode(), digest_size=12).hexdigest()
        known = self._known.get(key)
        answers: dict[str, tuple[list[int], bool]] = (
            {a: (ids, end) for a, ids, end in known["answers"]} if known else {}
        )
        spans: dict[str, tuple[int, ...]] = {}
        texts = {QUESTION: question}
        instances = []
        for agent in self.agents:
            ids, pieces = self.prompt(agent, texts, spans)
            if agent.name not in answers:
                answers[agent.name] = ([], False) if agent.name in self.silent else self.greedy(ids)
            output, stopped = answers[agent.name]
            parts = self.renderer.segments(messages(agent, texts)).parts
            cuts = tuple(edge for part in parts for edge in (part.start, part.stop))
            instances.append(Instance(index, agent.name, ids, pieces, tuple(output), stopped, cuts))
            if QUESTION not in spans:
                spans[QUESTION] = next((ids[p.start : p.stop] for p in pieces if p.name == QUESTION), ())
            spans[agent.name] = instances[-1].fed
            # The token at which an answer was cut off never went through the model: it is not passed on.
            texts[agent.name] = str(
                self.loaded.tokenizer.decode(list(spans[agent.name]), skip_special_tokens=True)
            ).strip()
        if known is None:
            row: dict[str, Any] = {"question": key, "answers": [[a, ids, end] for a, (ids, end) in answers.items()]}
            self._known[key] = row
            append_line(self.file, row)
        return instances

    def isolated(self, question: Sequence[int]) -> tuple[int, ...]:
        """A question alone behind the header of the user's turn, as the published scheme prefills it."""
        agent = self.agents[0]
        text = compose(self.renderer, agent, {QUESTION: "\ue000"}).text
        header = text[text.find(agent.system) + len(agent.system) : text.find("\ue000")]
        return (*tokenise(self.loaded, header)[0], *question)

    def template(self, agent: Agent) -> tuple[tuple[int, ...], tuple[Piece, ...]]:
        """An agent's prompt with the names of the spans in their places."""
        texts = {
            part.name: f"{{{part.name.lower().replace(' ', '_')}}}" for part in agent.user if isinstance(part, Span)
        }
        return self.prompt(agent, texts, {})

    def prompt(
        self, agent: Agent, texts: Mapping[str, str], spans: Mapping[str, Sequence[int]]
    ) -> tuple[tuple[int, ...], tuple[Piece, ...]]:
        """An agent's prompt and its pieces.

        Args:
            agent: who is asked.
            texts: by the name of the span.
            spans: token ids of their donors. A span without one is a piece as it stands; of others,
                the longest run that its donor has too.
        """
        composed = compose(self.renderer, agent, texts)
        ids, starts, stops = tokenise(self.loaded, composed.text)
        pieces = []
        for name, shared, begin, end in composed.places:
            start, stop = bisect_left(starts, begin), bisect_right(stops, end)
            offset = 0
            if shared and name in spans:
                index = SpanIndex(window=8, min_span=MIN_SPAN)
                index.add(0, spans[name])
                matches = index.find(ids[start:stop])
                if not matches:
                    continue
                longest = max(matches, key=lambda match: match.stop - match.start)
                start, stop, offset = start + longest.start, start + longest.stop, longest.offset
            if start < stop:
                pieces.append(Piece(start, stop, name, shared, offset))
        return ids, tuple(pieces)

    @torch.no_grad()
    def greedy(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """The dense greedy answer, and whether it ended by itself."""
        cache = self.runner.open(len(ids) + self.max_new)
        output: list[int] = []
        try:
            token = int(self.runner.prefill(cache, ids).logits[0].argmax())
            while token not in self._eos:
                output.append(token)
                if len(output) >= self.max_new:
                    return output, False
                token = int(self.runner.decode(cache, token).argmax())
        finally:
            self.runner.close(cache)
        return output, True


def messages(agent: Agent, texts: Mapping[str, str]) -> tuple[Message, ...]:
    """What an agent is sent."""
    content = "".join(texts[part.name] if isinstance(part, Span) else part for part in agent.user)
    return Message("system", agent.system), Message("user", content)


def compose(renderer: PromptRenderer, agent: Agent, texts: Mapping[str, str]) -> Composed:
    """An agent's prompt as text.

    Raises:
        PromptError: the chat template changes the text of a message.
    """
    asked = messages(agent, texts)
    text = renderer.text(asked)
    at = text.rfind(asked[-1].content)
    if at < 0:
        raise PromptError("the model's chat template changes the text of a message; it cannot be measured here")
    places, before = [], 0
    start = 0  # of the own text that goes on from here
    for part in agent.user:
        end = at + len(texts[part.name] if isinstance(part, Span) else part)
        if isinstance(part, Span):
            places.append((str(before), False, start, at))
            places.append((part.name, True, at, end))
            before, start = before + 1, end
        at = end
    places.append((str(before), False, start, len(text)))
    return Composed(text, tuple(places))


def tokenise(loaded: LoadedModel, text: str) -> tuple[tuple[int, ...], list[int], list[int]]:
    """Token ids, and the first and the last character (exclusive) of each."""
    encoded = loaded.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    # Some tokenizers leave a token's leading space out of its offsets: it begins where the last one ended.
    stops = list(accumulate((stop for _, stop in offsets), max))
    starts = [min(start, before) for (start, _), before in zip(offsets, [0, *stops], strict=False)]
    return tuple(encoded["input_ids"]), starts, stops


def read_lines(file: Path, key: str) -> dict[str, dict[str, Any]]:
    """Rows of a JSON-lines file by one of their fields; the latest of each."""
    return {str(row[key]): row for row in lines(file)}


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file, without lines that a killed process cut off."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as text:
        for line in text:
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def append_line(file: Path, row: Mapping[str, object]) -> None:
    """Add a row, so that it is there if the process dies right after."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut = file.is_file() and file.stat().st_size > 0 and not _ends_whole(file)
    with file.open("a", encoding="utf-8") as text:
        text.write(("\n" if cut else "") + json.dumps(row) + "\n")


def _ends_whole(file: Path) -> bool:
    with file.open("rb") as raw:
        raw.seek(-1, 2)
        return raw.read(1) == b"\n"
