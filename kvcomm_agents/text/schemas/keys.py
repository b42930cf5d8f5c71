"""Keys: of the entries of an object that are not listed by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .alternatives import Alternatives
from .branch import Branch, literal
from .document import Joint
from .members import quoted
from .patterns import FORMATS, lengths_regex, quoted_regex
from .refusals import Unsatisfiable
from .terminals import Terminals

_LONGEST = 64
_ANY = rf'/"[^"\\\x00-\x1f\x7f]{{1,{_LONGEST}}}"/'


class Keys:
    """Finds the terminals of keys.

    Args:
        terminals: of the schema.
        alternatives: of the schema.
    """

    def __init__(self, terminals: Terminals, alternatives: Alternatives) -> None:
        self._terminals, self._alternatives = terminals, alternatives

    def anything(self) -> str:
        """The terminal of any key."""
        return self._terminals.of_regex(_ANY, "#")

    def of(self, branch: Branch, names: Sequence[str], others: Joint | None) -> Iterator[tuple[str, Joint]]:
        """The terminals of an object's further keys, no key in two of them, and what their values obey.

        Args:
            branch: of the object.
            names: that are listed, and are no further keys.
            others: what values without a name or pattern obey; `None` if there are none.

        Raises:
            Unsupported: a pattern of keys that no grammar has.
        """
        taken = [quoted(literal(name)) for name in names]
        patterns = {pattern: quoted_regex(pattern, branch.where) for pattern in branch.patterned}
        wanted = [
            ([patterns[pattern]], [other for known, other in patterns.items() if known != pattern], joint)
            for pattern, joint in branch.patterned.items()
        ]
        wanted += [] if others is None else [([], list(patterns.values()), others)]
        for found, outside, joint in wanted:
            for allowed in self._allowed(branch):
                body = _all([_ANY, *found, *allowed], [*taken, *outside])
                try:
                    yield self._terminals.of_regex(body, branch.where), joint
                except Unsatisfiable:
                    continue

    def _allowed(self, branch: Branch) -> Iterator[list[str]]:
        """What `propertyNames` asks of keys, each way to obey it as expressions that must all match."""
        if not branch.names:
            yield []
            return
        for option in self._alternatives.of(branch.names):
            if option.values is not None or "string" not in option.kinds:
                continue  # names that are listed
            formats = [f"^(?:{FORMATS[name]})$" for name in option.formats if name in FORMATS]
            found = [quoted_regex(pattern, option.where) for pattern in [*option.patterns, *formats]]
            if option.min_length or option.max_length is not None:
                most = _LONGEST if option.max_length is None else min(option.max_length, _LONGEST)
                found.append(lengths_regex(min(option.min_length, most + 1), most))
            yield found


def _all(expressions: Sequence[str], outside: Sequence[str]) -> str:
    banned = [f"~({' | '.join(outside)})"] if outside else []
    return " & ".join([*dict.fromkeys(expressions), *banned])
