"""`kvcomm bench judges`: does a judge that reads reused answers pick the one that it picks when prefilled densely?

Four solvers answer a question, each in its own way; a judge names the best answer by its letter, once with
the answers in order and once shuffled. A judge whose dense pick follows the place rather than the content
cannot show anything, so that is reported first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcomm_agents.errors import ConfigError

from .calls import tokens_of
from .chain import Chain
from .data import load_questions
from .learned import Learned
from .options import JudgesOptions, names
from .record import Recorder
from .served import make_column
from .session import Report, Session, Table, title
from .strategies import GUARDED, NAMES, STRATEGIES, logits_of
from .team import QUESTION, Agent, Role, Span

LETTERS = "ABCD"
JUDGES = ("Judge", "Judge of shuffled answers")
ORDERS = ((0, 1, 2, 3), (2, 0, 3, 1))
"""Which solver's answer stands in each place, for each judge. Nobody keeps its place when shuffled."""

SOLVERS = (
    Role("Careful Solver", "You solve problems slowly. Write down what is given, then each step with its result."),
    Role("Quick Solver", "You solve problems in your head and answer in one short sentence, without showing any work."),
    Role(
        "Algebra Solver",
        "You solve problems with equations. Name the unknown, write one equation for it, solve it, state the value.",
    ),
    Role(
        "Explaining Solver",
        "You explain problems to a child. Use easy words and a picture from everyday life, and end with the answer.",
    ),
)
_JUDGE = (
    "You are the judge of a contest. Several contestants have answered the same question, and exactly one answer wins:"
    " the one that is right, and among right ones the one that is explained best. Where an answer stands and how long"
    " it is does not matter. You reply with the letter of the winning answer and with nothing else."
)


def contest() -> tuple[Agent, ...]:
    """Four solvers who read only the question, and the judges."""
    asked = ("The question is the following:\n", Span(QUESTION), "\n\nWhat is your answer?")
    agents = [Agent(role.name, role.system, asked) for role in SOLVERS]
    for name, order in zip(JUDGES, ORDERS, strict=True):
        user: list[str | Span] = ["The question of this contest is the following:\n", Span(QUESTION)]
        for letter, solver in zip(LETTERS, order, strict=True):
            user += [f"\n\nContestant {letter} has handed in this answer:\n", Span(SOLVERS[solver].name)]
        user.append("\n\nWhich answer wins? Reply with one letter: A, B, C or D.")
        agents.append(Agent(name, _JUDGE, tuple(user)))
    return tuple(agents)


@dataclass(frozen=True, slots=True)
class Pick:
    """Whom a judge named: its place (0 is A), and the solver who stood there."""

    place: int
    solver: int


class Jury:
    """Reads picks off logits.

    Args:
        chain: of `contest()`.

    Raises:
        ConfigError: a letter is more than one token of this model.
    """

    def __init__(self, chain: Chain) -> None:
        ids = list(map(tokens_of(chain.loaded), LETTERS))
        if any(len(letter) != 1 for letter in ids):
            raise ConfigError(f"the letters {LETTERS} are not single tokens of this model, so its picks cannot be read")
        self._letters = torch.tensor(ids)[:, 0]

    def pick(self, judge: str, logits: Tensor) -> Pick:
        """The letter with the largest logit, first position of `[positions, vocabulary]`."""
        place = int(logits[0].cpu()[self._letters].argmax())
        return Pick(place, ORDERS[JUDGES.index(judge)][place])


def measure(options: JudgesOptions, session: Session) -> Report:
    """How often each strategy has the judges pick as dense does."""
    strategies, warmup = names(options.strategies, NAMES, "strategy"), options.warmup
    questions = load_questions(options.questions, warmup + options.evaluation, options.data)
    asked = Chain(session.loaded, contest(), silent=JUDGES, say=session.say)
    instances = asked.run(questions, session.tell)
    jury, recorder = Jury(asked), Recorder(asked)
    learned, guarded = Learned(recorder), make_column(GUARDED, asked.loaded)
    dense: list[dict[str, Pick]] = []
    same: dict[str, Counter[str]] = {name: Counter() for name in strategies}
    for index, question in enumerate(instances):
        cases = {case.instance.agent: case for case in recorder.cases(question)}
        served = {one.agent: guarded.serve(one, 1) for one in question} if GUARDED in strategies else {}
        if index < warmup:
            for judge in JUDGES:
                learned.learn(cases[judge])
            continue
        dense.append({judge: jury.pick(judge, cases[judge].logits) for judge in JUDGES})
        for judge in JUDGES:
            for name in strategies:
                logits = cases[judge].logits
                if name != GUARDED:
                    logits = logits_of(cases[judge], STRATEGIES[name](cases[judge], learned), learned)
                elif served[judge].corrected and (scores := served[judge].scores):
                    logits = scores.logits
                same[name][judge] += jury.pick(judge, logits) == dense[-1][judge]
        session.tell("judges", index + 1, len(questions))
    return {
        **session.described,
        "data": options.questions,
        "warmup": warmup,
        "eval": options.evaluation,
        "dense_judge": _bias(dense),
        "strategies": {name: _consistency(same[name], len(dense)) for name in strategies},
    }


def _bias(picks: Sequence[Mapping[str, Pick]]) -> dict[str, Any]:
    """What the dense judge goes by: how often it names the same answer, or the same place, in both orders."""
    ordered, shuffled = JUDGES
    letters = {judge: sorted(LETTERS[one[judge].place] for one in picks) for judge in JUDGES}
    return {
        "same_answer": sum(one[ordered].solver == one[shuffled].solver for one in picks) / len(picks),
        "same_place": sum(one[ordered].place == one[shuffled].place for one in picks) / len(picks),
        "places": {judge: dict(Counter(named)) for judge, named in letters.items()},
    }


def _consistency(same: Mapping[str, int], cases: int) -> dict[str, Any]:
    ordered, shuffled = (same[judge] / cases for judge in JUDGES)
    mean = (ordered + shuffled) / 2
    return {"n": len(JUDGES) * cases, "judge_consistency": mean, "in_order": ordered, "shuffled": shuffled}


def tables(report: Mapping[str, Any]) -> Iterator[Table | str]:
    """What the dense judge goes by, and a row a strategy."""
    dense = report["dense_judge"]
    yield (
        f"dense judge, answers in order and shuffled: same answer {dense['same_answer']:.0%}, same place"
        f" {dense['same_place']:.0%}, places {dense['places']}"
    )
    shares = {"consistency": "judge_consistency:.2f", "in order": "in_order:.2f", "shuffled": "shuffled:.2f"}
    heading = title(report, f"{report['data']}: picks as the dense judge does")
    yield Table(heading, {"strategy": ":key", "n": "n", **shares}, report["strategies"])
