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
        self._spent: Counter[str] = Counter()

    def credit(self, tokens: int) -> None:
        """Reuse has saved so many tokens; fewer than none if it computed more than an exact prefix cache would have."""
        self._saved += tokens

    def charge(self, kind: str, tokens: int) -> None:
        """Idle work of that kind has computed so many."""
        if tokens:
            self._spent[kind] += tokens

    @property
    def account(self) -> Account:
        """As it stands."""
        return Account(self._saved, dict(self._spent))
