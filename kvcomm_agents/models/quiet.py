"""Quiet: one spinner in place of transformers' progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..log import get_logger

logger = get_logger(__name__)


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """One spinner on a terminal's stderr, one log line elsewhere, instead of transformers' bars."""
    from transformers.utils import logging as hf_logging

    had_bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if sys.stderr.isatty():
            from rich.console import Console

            with Console(file=sys.stderr).status(what):
                yield
        else:
            logger.info("%s", what)
            yield
    finally:
        if had_bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
