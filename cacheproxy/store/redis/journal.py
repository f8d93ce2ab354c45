"""The purge journal: which entries this replica asked to be removed, in a file beside, for a day.

An engine that fails over may lose its last writes, purges among them. What is written here first is asked for again.
Only ids and times are written.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cacheproxy.datafile import Form
from cacheproxy.errors import StoreUnavailable
from cacheproxy.filethread import FileThread

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection
    from pathlib import Path
    from typing import Self

FILE = "purges.sqlite3"
KEEP_S = 24 * 3600.0
_TIMEOUT_S = 2.0
_FORM = Form(
    what="purges of shared entries",
    mark=0x63707067,
    version=1,
    schema="CREATE TABLE purges (id TEXT PRIMARY KEY, ver INTEGER NOT NULL, asked REAL NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX purges_by_time ON purges (asked);",
    pragmas=("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"),
)


class PurgeJournal:
    """What was purged, with the version up to which; used as `async with`."""

    def __init__(self, path: Path) -> None:
        self._file = FileThread(path, _FORM, StoreUnavailable)
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Open the file. Raises ConfigError."""
        await self._file.open(lambda _: None)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close it."""
        await self._file.close()

    async def note(self, entry_ids: Collection[str], ver: int, now_s: float, *, done: bool = False) -> None:
        """Write down purges before they are asked for; `ver` is a time in microseconds. Raises StoreUnavailable.

        Once they are `done` it is the engine's own, in place of what this machine's clock said.
        """
        known = "excluded.ver" if done else "max(ver, excluded.ver)"
        rows = [(entry_id, ver, now_s) for entry_id in entry_ids]

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.execute("DELETE FROM purges WHERE asked < ?", (now_s - KEEP_S,))
                connection.executemany(
                    "INSERT INTO purges VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                    f"ver = {known}, asked = excluded.asked",
                    rows,
                )

        await self._file.do(write, timeout_s=_TIMEOUT_S, failure="the journal of purges cannot be written")

    async def noted(self, now_s: float) -> dict[str, int]:
        """Return what was purged during the last day, each with its version. Raises StoreUnavailable."""

        def read(connection: sqlite3.Connection) -> dict[str, int]:
            return dict(connection.execute("SELECT id, ver FROM purges WHERE asked >= ?", (now_s - KEEP_S,)))

        return await self._file.do(read, timeout_s=_TIMEOUT_S, failure="the journal of purges cannot be read")
