"""A chain: what each agent of a team is asked, and what it answers when prefilled densely.

Answers are greedy and kept on disk, so a run that was killed goes on where it stopped, and every
measurement sees the same ones.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from kvcomm_agents.backends.transformers.runner import Runner
from kvcomm_agents.errors import PromptError
from kvcomm_agents.kv.span_index import SpanIndex
from kvcomm_agents.models.loading import LoadedModel
from kvcomm_agents.request import Message
from kvcomm_agents.text.prompt import PromptRenderer

from .calls import Call, cuts_of, text_of
from .kept import Kept
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
class Instance(Call):
    """One request of a chain; its output is what a dense greedy run said and fed, `request` the question's index.

    Args:
        pieces: in prompt order; tokens in none of them are a mixture, or too short to be known again.
    """

    pieces: tuple[Piece, ...] = ()

    @property
    def spans(self) -> tuple[Piece, ...]:
        """The pieces that came from elsewhere."""
        return tuple(piece for piece in self.pieces if piece.shared)

    @property
    def prefix(self) -> int:
        """Tokens before the first span: the same in every prompt of this agent."""
        return self.spans[0].start if self.spans else self.pieces[0].stop


class Chain:
    """Prompts of a team on one model, and its dense answers.

    Args:
        loaded: the model.
        agents: in the order in which they answer.
        max_new: tokens of an answer, at most.
        silent: agents who are asked and whose answer nobody needs.
        say: is told of answers that are there already.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        agents: Sequence[Agent],
        max_new: int = MAX_NEW,
        silent: Sequence[str] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.loaded, self.runner, self.agents, self.max_new = loaded, Runner(loaded.model), tuple(agents), max_new
        self._silent, self._renderer = frozenset(silent), PromptRenderer(loaded.tokenizer)
        self.key = (loaded.fingerprint, self.agents, max_new, tuple(silent))
        self._kept = Kept("answers", self.key, ("question",), say)
        eos = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
        eos = loaded.tokenizer.eos_token_id if eos is None else eos
        self._eos = frozenset([eos] if isinstance(eos, int) else eos or ())

    def run(
        self, questions: Sequence[str | Mapping[str, str]], tell: Callable[[str, int, int], None] = lambda *_: None
    ) -> list[list[Instance]]:
        """Every agent's request for every question.

        Args:
            questions: their texts, or texts by the names of spans where there is more than the question.
            tell: hears of progress.
        """
        instances = []
        for index, question in enumerate(questions):
            instances.append(self._question(index, {QUESTION: question} if isinstance(question, str) else question))
            tell("dense answers", index + 1, len(questions))
        return instances

    def _question(self, index: int, given: Mapping[str, str]) -> list[Instance]:
        texts, spans, instances = dict(given), dict[str, Sequence[int]](), list[Instance]()
        key = repr(sorted(given.items()))
        known = self._kept.rows.get((key,))
        answers: dict[str, list[int]] = dict(known["answers"]) if known else {}
        for agent in self.agents:
            ids, pieces = self.prompt(agent, texts, spans)
            if agent.name not in answers:
                answers[agent.name] = [] if agent.name in self._silent else self.greedy(ids)
            output = tuple(answers[agent.name])
            cuts = cuts_of(self._renderer.segments(messages(agent, texts)))
            instances.append(Instance(index, agent.name, ids, output, cuts, pieces=pieces))
            for piece in pieces:
                if piece.shared:
                    spans.setdefault(piece.name, ids[piece.start : piece.stop])
            spans[agent.name] = output
            texts[agent.name] = text_of(self.loaded, output)
        if not known:
            self._kept.add({"question": key, "answers": answers})
        return instances

    def isolated(self, question: Sequence[int]) -> tuple[int, ...]:
        """A question alone behind the header of the user's turn, as the published scheme prefills it."""
        agent = self.agents[0]
        text, _ = compose(self._renderer, agent, {QUESTION: "\ue000"})
        header = text[text.find(agent.system) + len(agent.system) : text.find("\ue000")]
        return (*tokenise(self.loaded, header)[0], *question)

    def template(self, agent: Agent) -> tuple[tuple[int, ...], tuple[Piece, ...]]:
        """An agent's prompt with the names of the spans in their places."""
        names = [part.name for part in agent.user if isinstance(part, Span)]
        return self.prompt(agent, {name: f"{{{name.lower().replace(' ', '_')}}}" for name in names}, {})

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
        text, places = compose(self._renderer, agent, texts)
        ids, starts, stops = tokenise(self.loaded, text)
        pieces = []
        for name, shared, begin, end in places:
            start, stop, offset = bisect_left(starts, begin), bisect_right(stops, end), 0
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
    def greedy(self, ids: Sequence[int]) -> list[int]:
        """The dense greedy answer, as far as it was fed: the token at which it was cut off, or ended, never was."""
        cache = self.runner.open(len(ids) + self.max_new)
        output: list[int] = []
        try:
            token = int(self.runner.prefill(cache, ids).logits[0].argmax())
            while token not in self._eos and len(output) < self.max_new - 1:
                output.append(token)
                token = int(self.runner.decode(cache, token).argmax())
        finally:
            self.runner.close(cache)
        return output


def messages(agent: Agent, texts: Mapping[str, str]) -> tuple[Message, ...]:
    """What an agent is sent."""
    content = "".join(texts[part.name] if isinstance(part, Span) else part for part in agent.user)
    return Message("system", agent.system), Message("user", content)


def compose(
    renderer: PromptRenderer, agent: Agent, texts: Mapping[str, str]
) -> tuple[str, list[tuple[str, bool, int, int]]]:
    """An agent's prompt as text, and the characters of its pieces: `(name, shared, begin, end)`.

    Raises:
        PromptError: the chat template changes the text of a message.
    """
    asked = messages(agent, texts)
    text = renderer.text(asked)
    at = text.rfind(asked[-1].content)
    if at < 0:
        raise PromptError("the model's chat template changes the text of a message; it cannot be measured here")
    places, own = list[tuple[str, bool, int, int]](), 0  # where the own text begins that goes on from here
    for part in agent.user:
        end = at + len(texts[part.name] if isinstance(part, Span) else part)
        if isinstance(part, Span):
            places += [(str(len(places) // 2), False, own, at), (part.name, True, at, end)]
            own = end
        at = end
    return text, [*places, (str(len(places) // 2), False, own, len(text))]


def tokenise(loaded: LoadedModel, text: str) -> tuple[tuple[int, ...], list[int], list[int]]:
    """Token ids, and the first and the last character (exclusive) of each."""
    encoded = loaded.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    # Some tokenizers leave a token's leading space out of its offsets: it begins where the last one ended.
    stops = list(accumulate((stop for _, stop in offsets), max))
    starts = [min(start, before) for (start, _), before in zip(offsets, [0, *stops], strict=False)]
    return tuple(encoded["input_ids"]), starts, stops
