"""JSON bodies, of any dialect: read as they pass, and taken only when they can be written and sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.model import Reply
from cacheproxy.query.canonical import deeper_than

if TYPE_CHECKING:
    from collections.abc import Iterable

_decode = msgspec.json.Decoder().decode

_MAX_DEPTH = 128  # far below what the decoder takes, so that whatever is kept can be merged, written and sent again


class BodyFold:
    """Reads a JSON body of at most `limit` bytes; `json` says whether the answer calls itself JSON."""

    def __init__(self, *, limit: int, json: bool) -> None:
        self._parts: list[bytes] = []
        self._room = limit
        self._json = json

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; the caller gets them as they are."""
        self._room -= len(chunk)
        if self._room >= 0:
            self._parts.append(chunk)
        return chunk

    def flush(self) -> bytes:
        """Return nothing: no byte is held back."""
        return b""

    @property
    def spoken(self) -> bool:
        """Whether something of the answer's text was read; of a body that is not known before its end."""
        return False

    def reply(self) -> Reply | str:
        """Return the body as a Reply, or why it is none."""
        if self._room < 0:
            return "too_large"
        if not self._json:
            return "not_json"
        body = read_object(b"".join(self._parts), "malformed_body")
        return body if isinstance(body, str) else Reply(body=body, source="body")


def read_object(raw: bytes, malformed: str) -> dict[str, Any] | str:
    """Return a JSON object, or `malformed` when the bytes are none, or "nested_too_deep"."""
    try:
        value = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return malformed
    if not isinstance(value, dict):
        return malformed
    return "nested_too_deep" if deeper_than(raw, _MAX_DEPTH) else value


def media_type(headers: Iterable[tuple[str, str]]) -> str:
    """Return the media type of an answer with these headers, lower-cased and without parameters, "" for none."""
    told = next((value for name, value in headers if name.lower() == "content-type"), "")
    return told.partition(";")[0].strip().lower()


def larger_than(value: object, limit: int) -> bool:
    """Whether a decoded value is of more than `limit` bytes as JSON, roughly; looks no further than it must."""
    size, left = 0, [value]
    for one in left:  # it grows as it is walked
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, dict):
            size += sum(map(len, one))
            left.extend(one.values())
        elif isinstance(one, list):
            size += len(one)
            left.extend(one)
        else:
            size += 4
        if size > limit:
            return True
    return False
