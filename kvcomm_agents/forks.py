"""Forks: what is done when this process is forked, where processes can be."""

from __future__ import annotations

import os
from collections.abc import Callable


def at_fork(
    *,
    before: Callable[[], None] = lambda: None,
    in_parent: Callable[[], None] = lambda: None,
    in_child: Callable[[], None] = lambda: None,
) -> None:
    """Have something done at every fork from now on, on the thread that forks.

    Args:
        before: in the parent, before the child is made.
        in_parent: afterwards.
        in_child: in the child, where that thread is the only one. Locks that others held are locked for ever.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
