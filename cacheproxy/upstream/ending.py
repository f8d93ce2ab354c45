"""Whether a body that only its connection's end marks came to its own end: else a cut would look like an answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.ports import Call

_MOST_JSON_BYTES = 4 * 1024 * 1024
_BLANK_LINES = (b"\n\n", b"\r\r", b"\r\n\r\n")
# At the start of a line, or in quotes: inside a string neither can be, where line ends and quotes are escaped.
_CLOSING = re.compile(rb'[\r\n]data: ?\[DONE\]|"response\.(?:completed|failed|incomplete)"')
_OPENING = re.compile(rb"chat\.completion\.chunk|text_completion|response\.created")
"""What the streams hold that have a closing event."""
_FIELD = re.compile(rb"[\r\n](?:data|event)")
_OVERLAP = 32  # more than the longest of those
_SPEAKING = ("/completions", "/responses", "/embeddings")
"""Paths whose success is never empty."""


class Ending(Protocol):
    """Follows a body whose end is unmarked."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        ...

    def whole(self) -> bool:
        """Whether the body may have ended here."""
        ...


def ending_of(call: Call, status: int, headers: Iterable[tuple[str, str]]) -> Ending | None:
    """Return what tells the end of this answer from a cut, or None where any end is to be believed.

    It is known by what it is: JSON must not stop in its middle; an event stream must end between events and, in
    OpenAI's streams, with the closing one; and where one of the two is the only success, it must not be empty.
    """
    told = {name.lower(): value.lower() for name, value in headers}
    kind = told.get("content-type", "")
    if told.get("content-encoding", "identity") != "identity":
        return None
    speaks = call.method == "POST" and status == 200 and call.target.partition("?")[0].rstrip("/").endswith(_SPEAKING)
    if kind.startswith("text/event-stream"):
        return _Stream(speaks=speaks)
    return _Json(speaks=speaks) if "json" in kind.partition(";")[0] else None


class _Stream:
    def __init__(self, *, speaks: bool) -> None:
        self._tail = b"\n"
        self._fed = self._opened = self._closed = False
        self._said = not speaks

    def feed(self, chunk: bytes) -> None:
        seen = self._tail + chunk
        self._fed = self._fed or bool(chunk)
        self._said = self._said or _FIELD.search(seen) is not None
        self._opened = self._opened or _OPENING.search(seen) is not None
        self._closed = self._closed or _CLOSING.search(seen) is not None
        self._tail = seen[-_OVERLAP:]

    def whole(self) -> bool:
        if self._closed and self._tail.rstrip().endswith(b"[DONE]"):
            return True  # some servers leave out the blank line behind their last word
        between = not self._fed or self._tail.endswith(_BLANK_LINES)
        return between and self._said and (self._closed or not self._opened)


class _Json:
    def __init__(self, *, speaks: bool) -> None:
        self._body = bytearray()
        self._speaks = speaks

    def feed(self, chunk: bytes) -> None:
        if len(self._body) <= _MOST_JSON_BYTES:
            self._body += chunk

    def whole(self) -> bool:
        if not self._body:
            return not self._speaks
        # What was too large to be held is believed, and so is what is wrong inside, not at its end.
        if len(self._body) > _MOST_JSON_BYTES:
            return True
        try:
            msgspec.json.decode(self._body, type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError) as exc:
            return "truncated" not in str(exc)
        return True
