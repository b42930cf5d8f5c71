"""Agents and the prompts they read: what a team is made of, and the measured chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data import load_questions

QUESTION = "question"
"""Name of the span that holds what was asked; every other span is named by the agent that wrote it."""


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a prompt where another's text stands."""

    name: str


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent: what it is always told, and what it reads.

    Args:
        name: who.
        system: its instructions.
        user: text and spans in turn; begins and ends with text.
    """

    name: str
    system: str
    user: tuple[str | Span, ...]


Texts = Callable[[int, Path | None], Sequence[Mapping[str, str]]]
"""Gives so many requests, with data from a folder (see `data.load_rows`): what stands in their spans, by name."""


@dataclass(frozen=True, slots=True)
class Team:
    """Agents that answer one after the other, and what they are asked.

    Args:
        name: who.
        agents: in the order in which they answer; one may read what those before it wrote.
        texts: the spans of each request that no agent writes.
    """

    name: str
    agents: tuple[Agent, ...]
    texts: Texts


def questions_of(name: str) -> Texts:
    """Requests of one question each, from a set of `data.SETS`."""
    return lambda count, folder: [{QUESTION: text} for text in load_questions(name, count, folder)]


@dataclass(frozen=True, slots=True)
class Role:
    """An agent's name and instructions, before it is given a place in a chain."""

    name: str
    system: str


SOLVER = Role(
    "Math Solver",
    "You are the Math Solver of a small team. You get one problem at a time. Read it slowly, write down the quantities"
    " that are given and the one that is asked for, and then work towards the answer in short numbered steps. Do every"
    " calculation explicitly, keep the units with the numbers, and skip no step because it looks obvious. Finish with"
    " one line that states the result and nothing else.",
)
ANALYST = Role(
    "Mathematical Analyst",
    "You are the Mathematical Analyst. Before you use any number, put the problem into symbols: name the unknowns,"
    " write the relations between them as equations, and say which words of the problem each equation comes from."
    " Only then insert the numbers and solve. Others may have worked on the same problem: read what they wrote"
    " critically, adopt what is right, and say in one sentence what is not. Close with the value you found.",
)
PROGRAMMER = Role(
    "Programming Expert",
    "You are the Programming Expert. You answer with a short Python program whose last line prints the result, followed"
    " by one sentence that says what it prints. Use plain arithmetic and telling variable names, read no input and"
    " import nothing. You may take over numbers that others have worked out, if you have checked them.\n\n"
    "Here is an example of what is expected from you.\n"
    "Problem: A baker fills 12 trays with 15 rolls each in the morning and 7 such trays after lunch. In the evening 23"
    " rolls are left over. How many rolls were sold that day?\n"
    "Answer:\n"
    "```python\n"
    "rolls_per_tray = 15\n"
    "trays = 12 + 7\n"
    "baked = trays * rolls_per_tray\n"
    "left_over = 23\n"
    "sold = baked - left_over\n"
    "print(sold)\n"
    "```\n"
    "The program prints 262, the number of rolls that were sold.",
)
INSPECTOR = Role(
    "Inspector",
    "You are the Inspector, the last one to look at a problem. Go through the work of the others line by line: does"
    " each quantity come from the problem, is each operation the right one, is it calculated correctly, and does the"
    " result answer what was asked? If you find a mistake, say where it is and give the correct value; if you find"
    " none, say so. What counts is whether an answer is right, not how many agree with it. End with the final answer.",
)
ROLES = (SOLVER, ANALYST, PROGRAMMER, INSPECTOR)


def chain(roles: Sequence[Role] = ROLES) -> tuple[Agent, ...]:
    """Agents of which each reads the question and the answers of all before it."""
    agents = []
    for place, role in enumerate(roles):
        user: list[str | Span] = ["The problem of this round is the following:\n", Span(QUESTION)]
        for number, before in enumerate(roles[:place], 1):
            user += [
                f"\n\nAt the same time, the output of agent {number}, the {before.name}, is as follows:\n",
                Span(before.name),
            ]
        user.append("\n\nNow give your own answer.")
        agents.append(Agent(role.name, role.system, tuple(user)))
    return tuple(agents)
