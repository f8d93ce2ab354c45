"""Event streams, of any dialect: passed on event by event, and read as a Reply when they have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.dialect import sse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cacheproxy.model import Reply


_MAX_EVENTS = 32_768
"""An answer within the size limit has far fewer; a flood of tiny ones would hold the event loop while it is read."""


class StreamFold:
    """Reads a server-sent event stream of at most `limit` bytes.

    `read` makes a Reply of all raw events, or says why they make none. `show` returns what the caller gets for one
    event; without it, every byte passes as it came.
    """

    def __init__(
        self,
        *,
        limit: int,
        read: Callable[[Iterable[bytes]], Reply | str],
        show: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._splitter = sse.Splitter(limit)
        self._events: list[bytes] = []
        self._room = limit
        self._read = read
        self._show = show
        self._unfinished = False

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; return those of whole events, as they are to be shown."""
        events = self._splitter.feed(chunk)
        if self._room >= 0:
            self._room -= len(chunk)
            # Blank lines say nothing, and a flood of them would take long to read.
            self._events.extend(event for event in events if not event.isspace())
            if len(self._events) > _MAX_EVENTS:
                self._room = -1
        if self._show is not None and not self._splitter.overflowed:
            events = [self._show(event) for event in events]
        return b"".join(events)

    def flush(self) -> bytes:
        """Return the bytes of an unfinished event."""
        held = self._splitter.flush()
        self._unfinished = bool(held.strip())
        return held

    def reply(self) -> Reply | str:
        """Return the folded Reply, or why the stream makes none."""
        if self._room < 0 or self._splitter.overflowed:
            return "too_large"
        if self._unfinished:
            return "stream_not_finished"
        return self._read(self._events)
