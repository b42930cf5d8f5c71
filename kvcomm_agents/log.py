"""Log: loggers whose filters and handlers, which are an app's own, cannot break what is logged."""

from __future__ import annotations

import logging
import threading
from typing import Any

_CALLER = 2  # frames up to the line that logs, those of `logging` itself not counted


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that never raises. What a filter or a handler raises costs the line, and nothing else."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As `logging.Logger.log`."""
        try:
            super().log(level, msg, *args, **{"stacklevel": _CALLER, **kwargs})
        except Exception:  # there is nowhere to say so: the log is what failed
            return
        except BaseException:
            if threading.current_thread() is threading.main_thread():
                raise  # Ctrl-C is the user's


def get_logger(name: str) -> SafeLogger:
    """The logger of a module, by its `__name__`."""
    return SafeLogger(logging.getLogger(name), {})
