"""Changes: prompts that repeat the one before them but for a few words, an order, or their oldest messages."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvcomm_agents.request import Message

from .teams.desk import HANDBOOK, TICKETS

REPLIES = (
    "That should not happen. I have asked the carrier where it is; if it is not with you tomorrow, we send another.",
    "No picture is needed this time. A new jug leaves the warehouse today, and nothing has to be sent back.",
    "You are right, a third repair would be one too many. Please tell me where the money should go.",
    "I can see both payments. One of them is on its way back and will be there by Thursday.",
    "The driver has been told. If he is faster than the message, the parcel waits at the shop on the corner.",
    "There is no need to send it back. I have put the difference of 14 euros on your account.",
    "We still have that ring, and it costs two euros. Your mother's press should be good for ten more years.",
    "The price of the two cups is paid back, and so is nothing else, since you keep the third. You pay for the parcel.",
    "You may return it until next week. Before you do, put the rubber mat under it, which is in the lid of the box.",
    "That reminder should not have gone out. It is cancelled, and four filters are on their way, free of charge.",
    "Please leave the teapot in its box; somebody will fetch it on Monday and bring the frother with him.",
    "We can take them one at a time, and lend you a fifth one meanwhile. Shall we begin on the first of the month?",
)
"""What the desk answered to the first tickets, in order."""
TOOLS = (
    "search: finds pages on the web by their words, ten at most",
    "read: opens a file by its path and gives its text",
    "write: puts a text into a file, and makes the file if there is none",
    "run: starts a command in the shell and gives what it prints",
    "ask: puts a question to the user and waits for the answer",
)
DOCUMENTS = tuple(
    f"{name}\n" + "\n".join(HANDBOOK[at : at + 2])
    for name, at in (("Parcels", 0), ("Repairs", 3), ("Bills", 5), ("Returns", 2))
)
RULES = "\n".join(HANDBOOK)
MOST = 8
"""Prompts of a case: there is text for no more."""
_TURNS, _STEP = 8, 2  # messages that a window holds, and by which it moves on


@dataclass(frozen=True, slots=True)
class Prompt:
    """What comes before the user's question, and who asks the model."""

    agent: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """Prompts that differ in one way.

    Args:
        name: of what changes.
        prompt: the prompt of a number from 0 on.
        about: a question about what changed.
        other: a question about anything else.
    """

    name: str
    prompt: Callable[[int], Prompt]
    about: str
    other: str

    def messages(self, number: int, question: str) -> tuple[Message, ...]:
        """A prompt with a question at its end."""
        return (*self.prompt(number).messages, Message("user", question))


def _system(agent: str, text: str) -> Prompt:
    return Prompt(agent, (Message("system", text),))


def _shuffled(texts: Sequence[str], number: int) -> list[str]:
    return random.Random(number).sample(texts, len(texts))


def _clock(number: int) -> Prompt:
    time = f"2026-11-27 12:{(7 * number + 3) % 60:02d}:{(17 * number + 11) % 60:02d}"
    return _system("desk", f"Current time: {time}. You are a clerk at the support desk of a shop.\n{RULES}")


def _worker(number: int) -> Prompt:
    who = f"worker {7 * number + 3}"
    team = ("red", "green", "blue", "black")[number % 4]
    return _system(who, f"You are {who}, of team {team}, at the support desk of a shop.\n{RULES}")


def _tools(number: int) -> Prompt:
    listed = "\n".join(_shuffled(TOOLS, number))
    return _system("desk", f"You can use these tools.\n{listed}\n\nThe rules of the desk are these.\n{RULES}")


def _documents(number: int) -> Prompt:
    found = "\n\n".join(_shuffled(DOCUMENTS, number))
    return _system("reader", f"You answer from documents that a search has found. They follow.\n\n{found}")


def _example(number: int) -> Prompt:
    replies = list(REPLIES[:6])
    replies[1] = f"That is a pity. We pay back {number + 2} euros of the price, and you need not send anything."
    examples = "\n\n".join(
        f"Customer: {ticket}\nDesk: {reply}" for ticket, reply in zip(TICKETS, replies, strict=False)
    )
    return _system("desk", f"You answer customers as in these examples.\n\n{examples}")


def _turns(start: int, stop: int) -> tuple[Message, ...]:
    """Messages of the desk's long chat: tickets and replies in turn."""
    pairs = zip(TICKETS, REPLIES, strict=False)
    turns = [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return tuple(turns[start:stop])


_CHAT = Message("system", f"You work at the support desk of a shop, with these rules.\n{RULES}")


def _window(number: int) -> Prompt:
    start = _STEP * number
    return Prompt("desk", (_CHAT, *_turns(start, start + _TURNS)))


def _summary(number: int) -> Prompt:
    start = _STEP * (number + 1)
    topics = ", then ".join(reply.partition(".")[0].lower() for reply in REPLIES[max(0, number - 2) : number + 1])
    summary = Message("user", f"Summary of the {start} messages before these. The desk said: {topics}.")
    ready = Message("assistant", "I have read the summary.")
    return Prompt("desk", (_CHAT, summary, ready, *_turns(start, start + _TURNS - _STEP)))


_ANY = "A customer says that a machine failed after a year. What may we promise?"
_NEXT = "What should the desk say next? Answer in one sentence."

CASES = {
    case.name: case
    for case in (
        Case("clock", _clock, "What is the current time, to the second? Repeat it from above.", _ANY),
        Case("worker", _worker, "Which worker are you, and of which team? Repeat it from above.", _ANY),
        Case("tools", _tools, "Name the tools you can use, in the order given above.", _ANY),
        Case("documents", _documents, "Name the titles of the documents, in the order given above.", _ANY),
        Case("example", _example, "How many euros did the desk pay back for the broken jug?", _NEXT),
        Case("summary", _summary, "Repeat the summary of the earlier messages, word by word.", _NEXT),
        Case("window", _window, "Repeat the oldest message of mine that you still see, word by word.", _NEXT),
    )
}
