"""Names of parametrised values that are the same in every process: no addresses."""

from __future__ import annotations

import re


def named(value: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
