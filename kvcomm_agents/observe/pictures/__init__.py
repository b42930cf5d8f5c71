"""Pictures of what requests did: a figure for notebooks, a page for browsers."""

from __future__ import annotations

from .figure import Picture, draw
from .page import report_page

__all__ = ["Picture", "draw", "report_page"]
