"""The virtual keys that replicas share: one document in the engine, changed as the successor of what was read.

Each replica keeps a copy as its file of keys, with the document's number, so that it knows its callers while the engine
is away. The engine's document wins: where replicas share keys they are changed by `cacheproxy keys`, not in the file.
What an emptied or failed-over engine lost, the copy with the highest number brings back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from cacheproxy.access.keyfile import format_keys, number_of, numbered, parse_keys, replace_file
from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.shared.script import Script
from cacheproxy.shared.topics import APPEND

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cacheproxy.access.keyring import KeyRecord
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link

log = structlog.get_logger()

TOPIC = "keys"
_TIMEOUT_S = 5.0
_MOST_TRIES = 16

_REPLACE = Script(
    APPEND
    + """
local rev = tonumber(redis.call('HGET', KEYS[1], 'rev') or '0')
if tonumber(ARGV[2]) <= rev or (ARGV[1] ~= '' and tonumber(ARGV[1]) ~= rev) then
  return 0
end
redis.call('HSET', KEYS[1], 'rev', ARGV[2], 'keys', ARGV[3])
tell(KEYS[2], ARGV[4], 'keys', ARGV[2])
return 1
"""
)


class SharedKeys:
    """The document of virtual keys of one install."""

    def __init__(self, link: Link, layout: Layout, secret: bytes, *, log_messages: int) -> None:
        self._link = link
        self._secret = secret
        self._key = layout.key("c", "keys")
        self._log = layout.stream("c")
        self._log_messages = log_messages

    async def read(self) -> tuple[int, bytes]:
        """Return the document and its number; (0, b"") where there is none. Raises SharedUnavailable."""
        rev, document = await self._link.slow("HMGET", self._key, "rev", "keys", timeout_s=_TIMEOUT_S)
        return (int(rev), bytes(document)) if rev and document else (0, b"")

    async def records(self) -> list[KeyRecord]:
        """Return every record. Raises ConfigError and SharedUnavailable."""
        _, document = await self.read()
        return parse_keys(document, "the keys that replicas share", self._secret) if document else []

    async def change(self, change: Callable[[list[KeyRecord]], list[KeyRecord]]) -> list[KeyRecord]:
        """Replace the records by what `change` makes of them, with no other change in between.

        Raises ConfigError and SharedUnavailable.
        """
        for _ in range(_MOST_TRIES):
            rev, document = await self.read()
            before = parse_keys(document, "the keys that replicas share", self._secret) if document else []
            records = change(before)
            if await self.put(format_keys(records, self._secret), rev + 1, after=rev):
                return records
        raise ConfigError("the keys that replicas share are changed all the time; try again")

    async def put(self, document: bytes, number: int, *, after: int | None = None) -> bool:
        """Let document `number` take the place of `after`, or else of any with a lower number; return whether it did.

        Raises SharedUnavailable.
        """
        args: list[bytes | str | int] = ["" if after is None else after, number, document, self._log_messages]
        return bool(await self._link.slow_run(_REPLACE, [self._key, self._log], args, _TIMEOUT_S))


class KeyCopy:
    """Keeps a replica's file of keys as the engine's document is. `changed` is called after every change."""

    def __init__(self, shared: SharedKeys, path: Path, changed: Callable[[], None] | None = None) -> None:
        self._shared = shared
        self._path = path
        self._taken = (0, b"")
        self.changed = changed

    async def hear(self, _: bytes = b"") -> None:
        """Take what is new, or bring back what the engine lost. Raises SharedUnavailable."""
        found = rev, document = await self._shared.read()
        own = await asyncio.to_thread(_read, self._path)
        if rev < max(1, number_of(own)):
            if own:
                await self._shared.put(own, max(1, number_of(own)))
        elif found != self._taken:
            try:
                await asyncio.to_thread(replace_file, self._path, numbered(document, rev))
            except OSError as exc:
                log.warning("keys_not_copied", path=str(self._path), reason=exc.strerror)
                return
            self._taken = found
            if self.changed is not None:
                self.changed()

    reload = hear

    async def tend(self) -> None:
        """Take what is new; without the engine the copy stays."""
        try:
            await self.hear()
        except SharedUnavailable:
            return


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
