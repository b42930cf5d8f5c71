"""Ledger: what reuse has saved a namespace, and what hidden work has cost it, in tokens through the model.

Saved is counted against an exact prefix cache, which an app gets anywhere: the prompt tokens that such a cache
would have computed, less those that were. Spent is what audits, trials, learning, corrections and warm-ups
computed when nobody waited.
"""

from __future__ import annotations

from collections import Counter

from ..observe.stats import Account


class Ledger:
    """Keeps the account of one namespace. Not thread-safe: its owner serialises."""

    def __init__(self) -> None:
        self._saved = 0
        self._credit = 0
        self._reserved = 0
        self._spent: Counter[str] = Counter()
        self.watched = 0
        """Tokens spent on audits that could gain nothing."""

    def open(self, tokens: int) -> None:
        """Give the credit of the first prompt that was reused, once."""
        self._credit = self._credit or tokens

    def credit(self, tokens: int) -> None:
        """Reuse has saved so many tokens; fewer than none if it computed more than an exact prefix cache would have."""
        self._saved += tokens

    def charge(self, kind: str, tokens: int) -> None:
        """Idle work of that kind has computed so many."""
        if tokens:
            self._spent[kind] += tokens

    def reserve(self, tokens: int) -> None:
        """So many are about to be spent by work that waits; a negative number gives back what was not."""
        self._reserved += tokens

    def room(self, share: float) -> float:
        """Tokens that may be spent, if hidden work may cost this share of what was saved, and the credit."""
        spent = sum(tokens for kind, tokens in self._spent.items() if kind != "warm")  # that was asked for
        return self._credit + share * self._saved - spent - self._reserved

    @property
    def account(self) -> Account:
        """As it stands."""
        return Account(self._saved, dict(self._spent))
