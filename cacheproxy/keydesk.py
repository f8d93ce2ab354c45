"""The desk where virtual keys of replicas are changed without a proxy: each call connects to the engine by itself."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cacheproxy.access.sharedkeys import SharedKeys
from cacheproxy.access.usage import spent_today
from cacheproxy.clock import SystemClock
from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.replica import join
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from cacheproxy.access.keyring import KeyRecord
    from cacheproxy.settings import Settings

T = TypeVar("T")

_TIMEOUT_MS = 5000
"""A person waits, not a request."""


class KeyDesk:
    """Reads and changes the keys that replicas share. Every call blocks, and raises ConfigError."""

    def __init__(self, loaded: Settings, folder: Path) -> None:
        """Learn the secret of the install: from the data directory, from the file, or as a replica does."""
        self._settings = loaded
        self._folder = folder
        self.secret = b""
        self.secret = self._asked(lambda keys, link, layout: _secret(link, layout, loaded, folder))

    def read(self) -> list[KeyRecord]:
        """Return every record."""
        return self._asked(lambda keys, link, layout: keys.records())

    def change(self, change: Callable[[list[KeyRecord]], list[KeyRecord]]) -> None:
        """Replace the records by what `change` makes of them, with no other change in between."""
        self._asked(lambda keys, link, layout: keys.change(change))

    def used(self) -> dict[str, int]:
        """Return the tokens of the day by key, of all replicas."""
        return self._asked(lambda keys, link, layout: spent_today(link, layout, time.time()))

    def _asked(self, ask: Callable[[SharedKeys, Link, Layout], Awaitable[T]]) -> T:
        async def connected() -> T:
            patient = msgspec.structs.replace(self._settings.replicas, timeout_ms=_TIMEOUT_MS)
            async with Link(self._settings.store, patient, SystemClock()) as link:
                layout = Layout(self._settings.store.prefix, link.shards)
                most = self._settings.replicas.log_messages
                return await ask(SharedKeys(link, layout, self.secret, log_messages=most), link, layout)

        try:
            return asyncio.run(connected())
        except SharedUnavailable as exc:
            raise ConfigError(f"store.url: virtual keys of replicas are kept there, and {exc.message}") from exc


async def _secret(link: Link, layout: Layout, loaded: Settings, folder: Path) -> bytes:
    joined = await join(link, layout, loaded, folder)
    if joined.apart:
        raise ConfigError("store.url: the engine cannot be reached, and virtual keys of replicas are kept there")
    return joined.secret
