"""Event streams, of any dialect: passed on event by event, and read meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cacheproxy.dialect import sse

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.model import Reply


_MAX_EVENTS = 32_768
"""An answer within the size limit has far fewer; a flood of tiny ones would hold the event loop while it is read."""


class Account(Protocol):
    """What a stream has told so far."""

    @property
    def spoken(self) -> bool:
        """Whether something of the answer's text was told."""

    def take(self, raw: bytes) -> None:
        """Take the next raw event, which is not blank. Nothing is taken any more once something is wrong."""

    def reply(self) -> Reply | str:
        """Return the Reply that all events make, or why they make none."""


class StreamFold:
    """Reads a server-sent event stream of at most `limit` bytes.

    `account` reads the events once they were passed on: those of one chunk when the next one comes, or somebody asks
    what they told. `show` returns what the caller gets for one event; without it, every byte passes as it came.
    """

    def __init__(self, account: Account, *, limit: int, show: Callable[[bytes], bytes] | None = None) -> None:
        self._splitter = sse.Splitter(limit)
        self._account = account
        self._room = limit
        self._events = 0
        self._unread: list[bytes] = []
        self._show = show
        self._unfinished = False

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; return those of whole events, as they are to be shown."""
        self._read()
        events = self._splitter.feed(chunk)
        self._room -= len(chunk)
        if not self._too_large:
            self._note(events)
        if self._show is not None and not self._splitter.overflowed:
            events = [self._show(event) for event in events]
        return b"".join(events)

    def flush(self) -> bytes:
        """Return the bytes of an unfinished event."""
        held = self._splitter.flush()
        self._unfinished = bool(held.strip())
        return held

    @property
    def spoken(self) -> bool:
        """Whether something of the answer's text was read."""
        self._read()
        return self._account.spoken

    def reply(self) -> Reply | str:
        """Return the folded Reply, or why the stream makes none."""
        if self._too_large:
            return "too_large"
        if self._unfinished:
            return "stream_not_finished"
        self._read()
        return self._account.reply()

    @property
    def _too_large(self) -> bool:
        return self._room < 0 or self._events > _MAX_EVENTS or self._splitter.overflowed

    def _note(self, events: list[bytes]) -> None:
        told = [event for event in events if not event.isspace()]  # blank lines say nothing, and may be a flood
        self._unread = told[: _MAX_EVENTS - self._events]
        self._events += len(told)

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for event in unread:
            self._account.take(event)
