"""The tasks: written for this package, small enough for a small model to try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """One function to write.

    Args:
        name: short, unique.
        prompt: what is asked, in words.
        entry_point: name of the function that `tests` call.
        tests: lines of Python, each an assertion.
    """

    name: str
    prompt: str
    entry_point: str
    tests: tuple[str, ...]


TASKS = (
    Task(
        name="merge-shifts",
        prompt=(
            "Write a Python function merge_shifts(shifts). Each shift is a pair (start, end) of whole "
            "hours with start < end. Shifts may come in any order, and may overlap or touch. Return a "
            "sorted list of pairs that covers the same hours with as few pairs as possible. An empty list "
            "gives an empty list."
        ),
        entry_point="merge_shifts",
        tests=(
            "assert merge_shifts([]) == []",
            "assert merge_shifts([(9, 12)]) == [(9, 12)]",
            "assert merge_shifts([(13, 15), (9, 12)]) == [(9, 12), (13, 15)]",
            "assert merge_shifts([(9, 12), (12, 14)]) == [(9, 14)]",
            "assert merge_shifts([(1, 10), (2, 3), (9, 11)]) == [(1, 11)]",
        ),
    ),
    Task(
        name="ticket-change",
        prompt=(
            "Write a Python function change(paid, price, coins). A ticket machine was paid `paid` cents "
            "for a ticket of `price` cents and holds the coins in `coins`, a dict from the value of a "
            "coin to how many there are. Return the coins to give back as a dict of the same form, always "
            "taking the largest coin that fits and is left. Leave out coins that are not used. Return "
            "None if the change cannot be made in this way, or if too little was paid."
        ),
        entry_point="change",
        tests=(
            "assert change(100, 100, {50: 1}) == {}",
            "assert change(100, 30, {50: 1, 20: 2}) == {50: 1, 20: 1}",
            "assert change(100, 60, {50: 3, 20: 1, 10: 5}) == {20: 1, 10: 2}",
            "assert change(100, 60, {50: 1}) is None",
            "assert change(10, 60, {50: 1}) is None",
        ),
    ),
    Task(
        name="snake-rows",
        prompt=(
            "Write a Python function snake_rows(grid) that reads a grid, given as a list of rows, like a "
            "snake: the first row from left to right, the second from right to left, the third from left "
            "to right, and so on. Return one flat list. Rows may have different lengths, and the grid may "
            "be empty."
        ),
        entry_point="snake_rows",
        tests=(
            "assert snake_rows([]) == []",
            "assert snake_rows([[1, 2, 3]]) == [1, 2, 3]",
            "assert snake_rows([[1, 2], [3, 4], [5, 6]]) == [1, 2, 4, 3, 5, 6]",
            "assert snake_rows([['a'], [], ['b', 'c']]) == ['a', 'b', 'c']",
        ),
    ),
    Task(
        name="quiet-streak",
        prompt=(
            "Write a Python function quiet_streak(levels, limit). `levels` holds one noise level for "
            "every minute. Return the length of the longest run of neighbouring minutes in which every "
            "level is below `limit`, or 0 if there is none."
        ),
        entry_point="quiet_streak",
        tests=(
            "assert quiet_streak([], 5) == 0",
            "assert quiet_streak([1, 2, 3], 5) == 3",
            "assert quiet_streak([5, 6, 7], 5) == 0",
            "assert quiet_streak([1, 9, 1, 2, 9, 1, 2, 3], 5) == 3",
        ),
    ),
    Task(
        name="shelf-labels",
        prompt=(
            "Write a Python function shelf_labels(titles). For every title, in order, return a label made "
            "of the first letters of its words in upper case. If a label was already given to an earlier "
            "title, append -2 to the second one, -3 to the third one, and so on. Words are separated by "
            "white space."
        ),
        entry_point="shelf_labels",
        tests=(
            "assert shelf_labels([]) == []",
            "assert shelf_labels(['war and peace']) == ['WAP']",
            "assert shelf_labels(['red dog', 'raw data', 'big sky', 'rye']) == ['RD', 'RD-2', 'BS', 'R']",
            "assert shelf_labels(['  emma  ']) == ['E']",
        ),
    ),
    Task(
        name="last-orders",
        prompt=(
            "Write a Python function last_orders(events, n). `events` is a list of strings in the order "
            "in which they happened: 'add NAME' puts an order at the end of the queue, 'cancel NAME' "
            "takes the newest order of that name out of it, and 'serve' takes out the oldest order. "
            "Events that find nothing to take out are ignored. Return the names of the last n orders "
            "still in the queue, oldest first."
        ),
        entry_point="last_orders",
        tests=(
            "assert last_orders([], 2) == []",
            "assert last_orders(['add ann', 'add bob', 'add cy'], 2) == ['bob', 'cy']",
            "assert last_orders(['add ann', 'add bob', 'add ann', 'cancel ann'], 5) == ['ann', 'bob']",
            "assert last_orders(['serve', 'add ann', 'serve', 'cancel bob', 'add cy'], 1) == ['cy']",
            "assert last_orders(['add ann'], 0) == []",
        ),
    ),
)
