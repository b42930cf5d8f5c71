"""Patterns: regular expressions of schemas, and of the formats that schemas name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from .refusals import UnsupportedPattern

_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[:=!<P]?[=!]?|[*+?]|\{\d+(?:,\d*)?\}|.", re.DOTALL)
_LOOKING = ("(?=", "(?!", "(?<=", "(?<!")
_COUNT = re.compile(r"\{(\d+)(,?)(\d*)\}")
_ASCII = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[A-Za-z0-9_]", r"\W": "[^A-Za-z0-9_]", "/": r"\/"}
_IN_CLASS = {r"\d": "0-9", r"\w": "A-Za-z0-9_", "/": r"\/"}

_LABEL = r"[A-Za-z0-9]{1,16}(?:-[A-Za-z0-9]{1,16}){0,2}"
_HOST = rf"(?:{_LABEL}\.){{0,3}}[A-Za-z][A-Za-z0-9]{{0,15}}"
_YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_LONG_MONTH = r"(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTH = r"(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8])"
_DATE = rf"(?:{_YEAR}-(?:{_LONG_MONTH}|{_SHORT_MONTH})|{_LEAP}-02-29)"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_CLOCK})"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_IPV6 = r"(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:){1,3}(?::[0-9a-f]{1,4}){1,3}|::(?:[0-9a-f]{1,4})?"
_D = "[0-9]{1,4}"
_CLOCKED = rf"T(?:{_D}H(?:{_D}M(?:{_D}S)?)?|{_D}M(?:{_D}S)?|{_D}S)"
_HEX = "[0-9a-fA-F]"
_SEGMENT = r"[A-Za-z0-9._~@!$&'()*+,;=:-]"
_URI = (
    rf"{_HOST}(?::[1-9][0-9]{{0,3}})?(?:/{_SEGMENT}{{0,64}}){{0,8}}(?:\?{_SEGMENT}{{0,128}})?(?:#{_SEGMENT}{{0,32}})?"
)
_BASE64, _BASE64URL = r"[A-Za-z0-9+/]", r"[A-Za-z0-9_-]"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": rf"P(?:{_D}W|(?:{_D}Y(?:{_D}M(?:{_D}D)?)?|{_D}M(?:{_D}D)?|{_D}D)(?:{_CLOCKED})?|{_CLOCKED})",
    "email": rf"[A-Za-z0-9_+-]{{1,32}}(?:\.[A-Za-z0-9_+-]{{1,16}}){{0,2}}@(?:{_LABEL}\.){{1,3}}[A-Za-z]{{2,12}}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": _IPV4,
    "ipv4network": rf"{_IPV4}/32",
    "ipv4interface": rf"{_IPV4}/(?:[12]?[0-9]|3[0-2])",
    "ipv6network": rf"(?:{_IPV6})/128",
    "ipv6interface": rf"(?:{_IPV6})/(?:[1-9]?[0-9]|1[01][0-9]|12[0-8])",
    "uuid": rf"{_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}",
    "uri": rf"[a-z][a-z0-9+.-]{{0,15}}://{_URI}",
    "json-pointer": r"(?:/[A-Za-z0-9_.-]{0,32}){0,8}",
    "relative-json-pointer": r"(?:0|[1-9][0-9]{0,2})(?:#|(?:/[A-Za-z0-9_.-]{0,32}){0,8})",
    "regex": r"[A-Za-z0-9_ -]{0,64}",
    "decimal": r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,9})?",
    "fraction": r"-?(?:0|[1-9][0-9]{0,14})(?:/[1-9][0-9]{0,14})?",
    "base64": rf"(?:{_BASE64}{{4}}){{0,256}}(?:{_BASE64}[AQgw]==|{_BASE64}{{2}}[AEIMQUYcgkosw048]=)?",
    "base64url": rf"(?:{_BASE64URL}{{4}}){{0,256}}(?:{_BASE64URL}[AQgw]==|{_BASE64URL}{{2}}[AEIMQUYcgkosw048]=)?",
}
"""What a format's strings are. Each ends by itself, and what it matches other programs can read: years from 1
on, days that there are, hosts that are names. A format that is not here says what a string means, and binds
nothing, as JSON schema has it."""
FORMATS |= {
    f"uuid{version}": FORMATS["uuid"].replace(
        f"(?:{_HEX}{{4}}-){{3}}", rf"{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-"
    )
    for version in range(1, 9)
}
FORMATS |= {
    "idn-email": FORMATS["email"],
    "name-email": FORMATS["email"],
    "idn-hostname": FORMATS["hostname"],
    "iri": FORMATS["uri"],
    "url": FORMATS["uri"],
    "uri-reference": FORMATS["uri"],
    "iri-reference": FORMATS["uri"],
    "uri-template": FORMATS["uri"],
    "multi-host-uri": FORMATS["uri"],
    "byte": FORMATS["base64"],
}


def checked(pattern: str, where: str) -> str:
    """A pattern that does not look around.

    Raises:
        UnsupportedPattern: it does.
    """
    if any(part in _LOOKING or part in (r"\b", r"\B") or re.fullmatch(r"\\[1-9]", part) for part in _parts(pattern)):
        raise UnsupportedPattern(where, f"has the pattern {pattern!r}, which looks around or back")
    return pattern


def least_length(pattern: str) -> int:
    """A length that a string of a pattern need not exceed, so that a bound of it leaves some."""
    counts = math.prod(int(count[1] or 1) or 1 for count in _COUNT.finditer(pattern))
    return len(pattern) * counts


def quoted_regex(pattern: str, where: str) -> str:
    """A regular expression of strings in quotes, without characters to escape, that a pattern is found in.

    Raises:
        UnsupportedPattern: it looks around, or has anchors within.
    """
    parts = list(_parts(checked(pattern, where)))
    begins, ends = parts[:1] == ["^"], parts[-1:] == ["$"]
    parts = parts[1 if begins else 0 : len(parts) - 1 if ends else len(parts)]
    if "^" in parts or "$" in parts or ("|" in _outer(parts) and (begins or ends)):
        raise UnsupportedPattern(where, f"has the pattern {pattern!r}, whose anchors are not at its ends")
    inner = "".join(_as_lark(part) for part in parts)
    return f'/"{"" if begins else "(?s:.*)"}(?:{inner}){"" if ends else "(?s:.*)"}"/'


def lengths_regex(least: int, most: int) -> str:
    """A regular expression of strings in quotes, without characters to escape, of some lengths."""
    return rf'/"(?s:.{{{least},{most}}})"/'


def _parts(pattern: str) -> Iterator[str]:
    return (part[0] for part in _PART.finditer(pattern))


def _as_lark(part: str) -> str:
    """A part of a pattern where `/` ends it, and digits are those of ASCII, as in ECMAScript."""
    if part.startswith("["):
        return "".join(_IN_CLASS.get(piece, piece) for piece in re.findall(r"\\.|.", part, re.DOTALL))
    return _ASCII.get(part, part)


def _outer(parts: list[str]) -> list[str]:
    """The parts that stand in no group."""
    found, depth = [], 0
    for part in parts:
        depth += part.startswith("(") - (part == ")")
        if not depth:
            found.append(part)
    return found
