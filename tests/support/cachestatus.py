"""RFC 9211 `Cache-Status`, read as RFC 9651 says: a list of members, each an item with parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*"
_STRING = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"'
_BARE = rf"(?:{_STRING}|-?[0-9]{{1,12}}\.[0-9]{{1,3}}|-?[0-9]{{1,15}}|{_TOKEN}|\?[01])"
_PARAMETER = re.compile(rf";[ ]*([a-z*][a-z0-9_.*-]*)(?:=({_BARE}))?")
_NAME = re.compile(rf"{_TOKEN}|{_STRING}")
_COMMA = re.compile(r"[ \t]*,[ \t]*")
_FORWARDED = frozenset({"bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"})
_INTEGERS = ("ttl", "fwd-status")
_FLAGS = ("hit", "stored", "collapsed")


@dataclass(frozen=True, slots=True)
class Member:
    """One cache's account of a request."""

    cache: str
    parameters: dict[str, str | int | bool]

    @property
    def hit(self) -> bool:
        """Whether that cache answered without going forward."""
        return self.parameters.get("hit") is True

    @property
    def forwarded(self) -> str | None:
        """Why that cache went forward, or None."""
        value = self.parameters.get("fwd")
        return value if isinstance(value, str) else None


def parse_cache_status(value: str) -> list[Member]:
    """Return the members, nearest the origin first. Raises ValueError for what RFC 9651 or RFC 9211 does not allow."""
    members: list[Member] = []
    at = 0
    while True:
        name = _NAME.match(value, at)
        if name is None:
            raise ValueError(f"no cache name at {at} of {value!r}")
        parameters: dict[str, str | int | bool] = {}
        at = name.end()
        while (parameter := _PARAMETER.match(value, at)) is not None:
            parameters[parameter[1]] = _bare(parameter[2])
            at = parameter.end()
        members.append(_checked(Member(name[0].strip('"'), parameters)))
        if at == len(value):
            return members
        comma = _COMMA.match(value, at)
        if comma is None:
            raise ValueError(f"rubbish at {at} of {value!r}")
        at = comma.end()


def _bare(text: str | None) -> str | int | bool:
    if text is None or text == "?1":
        return True
    if text == "?0":
        return False
    if text.startswith('"'):
        return re.sub(r'\\(["\\])', r"\1", text[1:-1])
    return int(text) if re.fullmatch("-?[0-9]+", text) else text


def _checked(member: Member) -> Member:
    parameters = member.parameters
    if member.hit and "fwd" in parameters:
        raise ValueError(f"both hit and fwd: {parameters}")
    if "fwd" in parameters and member.forwarded not in _FORWARDED:
        raise ValueError(f"fwd is {parameters['fwd']!r}")
    for name in _INTEGERS:
        if name in parameters and (isinstance(parameters[name], bool) or not isinstance(parameters[name], int)):
            raise ValueError(f"{name} is {parameters[name]!r}")
    for name in _FLAGS:
        if name in parameters and not isinstance(parameters[name], bool):
            raise ValueError(f"{name} is {parameters[name]!r}")
    return member
