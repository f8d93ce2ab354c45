"""Whether a body that only its connection's end marks came to its own end: else a cut would look like an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cacheproxy.errors import UpstreamBroken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.ports import Answer

_MOST_JSON_BYTES = 4 * 1024 * 1024
_BLANK_LINES = (b"\n\n", b"\r\r", b"\r\n\r\n")
_CLOSING = (b"[DONE]", b"response.completed", b"response.failed", b"response.incomplete")
_OPENING = (b"chat.completion.chunk", b"text_completion", b"response.created")
"""What the streams hold that have a closing event."""
_LONGEST = max(map(len, (*_OPENING, *_CLOSING))) - 1


async def to_its_end(answer: Answer) -> AsyncIterator[bytes]:
    """Yield the body of an answer whose end is unmarked. Raises UpstreamBroken after its bytes if it came too early.

    It is known by what it is: JSON must be whole; an event stream must end between events and, in OpenAI's streams,
    with the closing one. Of anything else the end is believed.
    """
    kind = next((value for name, value in answer.headers if name.lower() == "content-type"), "").lower()
    body = _Stream() if kind.startswith("text/event-stream") else _Json() if "json" in kind.partition(";")[0] else None
    if any(name.lower() == "content-encoding" for name, _ in answer.headers):
        body = None
    async for chunk in answer.chunks():
        if body is not None:
            body.feed(chunk)
        yield chunk
    if body is not None and not body.whole():
        raise UpstreamBroken("the backend's answer ended before its own end mark")


class _Stream:
    def __init__(self) -> None:
        self._tail = b""
        self._opened = self._closed = False

    def feed(self, chunk: bytes) -> None:
        seen = self._tail + chunk
        self._opened = self._opened or any(mark in seen for mark in _OPENING)
        self._closed = self._closed or any(mark in seen for mark in _CLOSING)
        self._tail = seen[-_LONGEST:]

    def whole(self) -> bool:
        return (not self._tail or self._tail.endswith(_BLANK_LINES)) and (self._closed or not self._opened)


class _Json:
    def __init__(self) -> None:
        self._body = bytearray()

    def feed(self, chunk: bytes) -> None:
        if len(self._body) <= _MOST_JSON_BYTES:
            self._body += chunk

    def whole(self) -> bool:
        # What was too large to be held is believed, and so is what is wrong inside, not at its end.
        if not self._body or len(self._body) > _MOST_JSON_BYTES:
            return True
        try:
            msgspec.json.decode(self._body, type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError) as exc:
            return "truncated" not in str(exc)
        return True
