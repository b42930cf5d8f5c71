"""`kvcomm bench judges`: does a judge that reads reused answers pick the one that it picks when prefilled densely?

Four solvers answer a question, each in its own way; a judge names the best answer by its letter, once with
the answers in order and once shuffled. A judge whose dense pick follows the place rather than the content
cannot show anything, so that is reported first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcomm_agents.backends.transformers.forced import forced
from kvcomm_agents.config import ReuseConfig
from kvcomm_agents.errors import ConfigError

from .chain import Chain, Instance
from .record import Case, Recorder
from .replay import Replay
from .strategies import GUARDED, NAMES, STRATEGIES, Learned
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
    solvers = [
        Agent(role.name, role.system, ("The question is the following:\n", Span(QUESTION), "\n\nWhat is your answer?"))
        for role in SOLVERS
    ]
    judges = []
    for name, order in zip(JUDGES, ORDERS, strict=True):
        user: list[str | Span] = ["The question of this contest is the following:\n", Span(QUESTION)]
        for letter, solver in zip(LETTERS, order, strict=True):
            user += [f"\n\nContestant {letter} has handed in this answer:\n", Span(SOLVERS[solver].name)]
        user.append("\n\nWhich answer wins? Reply with one letter: A, B, C or D.")
        judges.append(Agent(name, _JUDGE, tuple(user)))
    return (*solvers, *judges)


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
        ids = [chain.loaded.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in LETTERS]
        if any(len(one) != 1 for one in ids):
            raise ConfigError(f"the letters {LETTERS} are not single tokens of this model, so its picks cannot be read")
        self._letters = torch.tensor([one[0] for one in ids])

    def pick(self, judge: str, logits: Tensor) -> Pick:
        """The letter with the largest logit, first position of `[positions, vocabulary]`."""
        place = int(logits[0].cpu()[self._letters].argmax())
        return Pick(place, ORDERS[JUDGES.index(judge)][place])


def judge(
    chain: Chain,
    questions: Sequence[str],
    warmup: int,
    strategies: Sequence[str] = NAMES,
    reuse: ReuseConfig | None = None,
    embedder: str | None = None,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Every strategy's picks beside the dense ones.

    Args:
        chain: of `contest()`, the judges silent.
        questions: those of the warm-up first.
        warmup: how many of them teach.
        strategies: of `NAMES`.
        reuse: the policy of `guarded`.
        embedder: as in `EngineConfig`.
        tell: hears of progress.

    Returns:
        `warmup`, `eval`, `dense_judge` and `strategies`.
    """
    total = len(questions)
    instances = chain.run(questions, lambda done: tell("answers", done, total))
    jury, recorder = Jury(chain), Recorder(chain)
    learned = Learned(recorder)
    replay = Replay(chain.loaded, reuse, embedder) if GUARDED in strategies else None
    dense: list[dict[str, Pick]] = []
    same: dict[str, Counter[str]] = {name: Counter() for name in strategies}
    for index, question in enumerate(instances):
        cases = {case.instance.agent: case for case in recorder.cases(question)}
        served = {one.agent: replay.serve(one).logits for one in question} if replay else {}
        if index >= warmup:
            dense.append({name: jury.pick(name, cases[name].logits) for name in JUDGES})
        for name in JUDGES:
            if index < warmup:
                learned.learn(cases[name])
                continue
            for strategy in strategies:
                logits = served.get(name) if strategy == GUARDED else _logits(cases[name], strategy, learned)
                agreed = logits is None or jury.pick(name, logits) == dense[-1][name]
                same[strategy][name] += agreed
        tell("judges", index + 1, total)
    return {
        "warmup": warmup,
        "eval": total - warmup,
        "dense_judge": _bias(dense),
        "strategies": {name: _consistency(same[name], len(dense)) for name in strategies},
    }


def _logits(case: Case, strategy: str, learned: Learned) -> Tensor:
    instance: Instance = case.instance
    plan = STRATEGIES[strategy](case, learned).plan
    return forced(learned.recorder.runner, instance.ids, (), plan)


def _bias(picks: Sequence[dict[str, Pick]]) -> dict[str, Any]:
    """What the dense judge goes by: how often it names the same answer, or the same place, in both orders."""
    ordered, shuffled = JUDGES
    return {
        "same_answer": sum(one[ordered].solver == one[shuffled].solver for one in picks) / len(picks),
        "same_place": sum(one[ordered].place == one[shuffled].place for one in picks) / len(picks),
        "places": {name: dict(sorted(Counter(LETTERS[one[name].place] for one in picks).items())) for name in JUDGES},
    }


def _consistency(same: Counter[str], cases: int) -> dict[str, Any]:
    ordered, shuffled = (same[name] / cases for name in JUDGES)
    return {
        "n": len(JUDGES) * cases,
        "judge_consistency": (ordered + shuffled) / 2,
        "in_order": ordered,
        "shuffled": shuffled,
    }
