"""Cache directives as HTTP writes them: `Cache-Control`, `Pragma`, and the targeted fields of RFC 9213.

Reading never fails and takes time linear in the value. Where a value is malformed or says a thing twice, whatever keeps
or serves less counts: a flag counts however its argument is spelt, and of two limits the stricter one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

LONGEST_S = float(2**31)
"""Where seconds stop to count (RFC 9111 section 1.2.2)."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_NAME = re.compile(_TOKEN)
_ARGUMENT = re.compile(rf'=(?:({_TOKEN})|"((?:[^"\\]++|\\.)*+)")', re.DOTALL)
_MARK = re.compile(r',|="')
_QUOTED = re.compile(r'="(?:[^"\\]++|\\.)*+"', re.DOTALL)

# RFC 9651: the structured fields that RFC 9213 builds on.
_KEY = r"[a-z*][a-z0-9_.*-]*+"
_BARE = (
    r'(?:"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+"|-?[0-9]{1,12}\.[0-9]{1,3}(?![0-9])|-?[0-9]{1,15}(?![0-9.])'
    r"|[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*+|:[A-Za-z0-9+/=]*+:|\?[01]|@-?[0-9]{1,15}(?![0-9])"
    r'|%"(?:[\x20\x21\x23\x24\x26-\x7e]|%[0-9a-f]{2})*+")'
)
_PARAMETERS = rf"(?:;[ ]*+{_KEY}(?:={_BARE})?+)*+"
_INNER = rf"\([ ]*+(?:{_BARE}{_PARAMETERS}(?:[ ]++|(?=\))))*+\)"
_MEMBER = re.compile(rf"({_KEY})(?:=({_BARE}|{_INNER}))?+{_PARAMETERS}")
_SEPARATOR = re.compile(r"[ \t]*+,[ \t]*+(?=[^ \t])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Directives:
    """Directives by lower-case name: each argument as it was given, "" for none, None for a malformed one."""

    arguments: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        """Whether a directive was given, however its argument is spelt."""
        return name in self.arguments

    def least(self, name: str, *, bare: float | None = None, nonsense: float | None = None) -> float | None:
        """Return the smallest of a directive's seconds, or None when it was not given.

        `bare` stands for a missing argument, `nonsense` for one that is no number of seconds; None skips it.
        """
        return min(self._seconds(name, bare, nonsense), default=None)

    def most(self, name: str) -> float | None:
        """Return the largest of a directive's seconds, or None when none was given."""
        return max(self._seconds(name, None, None), default=None)

    def _seconds(self, name: str, bare: float | None, nonsense: float | None) -> Iterator[float]:
        for argument in self.arguments.get(name, ()):
            seconds = bare if argument == "" and bare is not None else delta_seconds(argument or "")
            if seconds is None:
                seconds = nonsense
            if seconds is not None:
                yield seconds


def read_directives(values: Iterable[str]) -> Directives:
    """Read all values of a `Cache-Control` or `Pragma` field (RFC 9111 section 5.2); what has no name is left out."""
    found: dict[str, list[str | None]] = {}
    for member in _members(", ".join(values)):
        name = _NAME.match(member)
        if name is not None:
            found.setdefault(name[0].lower(), []).append(_argument(member[name.end() :]))
    return Directives(arguments=found)


def read_targeted(values: Iterable[str]) -> Directives | None:
    """Read all values of a targeted field, a structured dictionary; None when it is empty or invalid as a whole.

    Then the general fields count, as if it had not been sent (RFC 9213 section 2.1).
    """
    text = ", ".join(values).strip(" ")
    found: dict[str, list[str | None]] = {}
    at = 0
    while True:
        member = _MEMBER.match(text, at)
        if member is None:
            return None
        key, value = member[1], member[2]
        if value != "?0":
            argument = "" if value in (None, "?1") else value if value.isdigit() else None
            found.setdefault(key, []).append(argument)
        at = member.end()
        if at == len(text):
            return Directives(arguments=found)
        separator = _SEPARATOR.match(text, at)
        if separator is None:
            return None
        at = separator.end()


def delta_seconds(argument: str) -> float | None:
    """Return a whole number of seconds, at most 2**31 (RFC 9111 section 1.2.2), or None when it is none."""
    if not (argument.isascii() and argument.isdigit()):
        return None
    digits = argument.lstrip("0")
    return min(float(digits or "0"), LONGEST_S) if len(digits) <= 10 else LONGEST_S


def _members(value: str) -> Iterator[str]:
    """Split at the commas that stand outside quotes; a quote that never closes quotes nothing."""
    start = at = 0
    closes = True
    while (mark := _MARK.search(value, at)) is not None:
        at = mark.end()
        if mark[0] == ",":
            yield value[start : mark.start()].strip()
            start = at
        elif closes:
            quoted = _QUOTED.match(value, mark.start())
            # A quote that does not close runs to the end, and so would every one behind it: no need to look again.
            closes = quoted is not None
            at = quoted.end() if quoted is not None else at
    yield value[start:].strip()


def _argument(rest: str) -> str | None:
    if not rest:
        return ""
    argument = _ARGUMENT.fullmatch(rest)
    if argument is None:
        return None
    return argument[1] if argument[1] is not None else re.sub(r"\\(.)", r"\1", argument[2], flags=re.DOTALL)
