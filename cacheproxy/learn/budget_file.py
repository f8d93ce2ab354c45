"""The file of the error budget: what was learnt of categories and entries, in numbers; no text is in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cacheproxy.datafile import Form, empty_log
from cacheproxy.errors import FeedbackUnavailable
from cacheproxy.filethread import FileThread

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

_FORM = Form(
    what="an error budget",
    mark=0x63706562,  # `cpeb`
    version=1,
    pragmas=("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"),
    schema="""
CREATE TABLE categories (category TEXT PRIMARY KEY, verifier TEXT NOT NULL, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    entry TEXT PRIMARY KEY,
    verifier TEXT NOT NULL,
    tenant TEXT NOT NULL,
    category TEXT NOT NULL,
    user TEXT NOT NULL,
    at REAL NOT NULL,
    mean REAL NOT NULL,
    variance REAL NOT NULL
) WITHOUT ROWID;
""",
)
_TIMEOUT_S = 30.0
_FAILURE = "the error budget could not be written; see the log and the disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRow:
    """What was learnt of one entry."""

    entry_id: str
    tenant: str
    category: str
    user: str
    at_s: float
    mean: float
    variance: float


class BudgetFile:
    """One file of what was learnt with one verifier: another one's probabilities mean something else, and are not read.

    To be closed once it was opened. Raises FeedbackUnavailable where nothing else is said.
    """

    def __init__(self, path: Path, verifier: str) -> None:
        self._verifier = verifier
        self._file = FileThread(path, _FORM, FeedbackUnavailable)

    async def open(self, take: Callable[[dict[str, bytes], list[EntryRow]], None]) -> None:
        """Open it, and give `take` the states of the categories, and what is known of entries, the oldest first.

        That is called in the file's thread: there may be much. Raises ConfigError.
        """
        await self._file.open(lambda connection: take(*self._load(connection)))

    async def save(self, states: dict[str, bytes], entries: Iterable[EntryRow], gone: Collection[str]) -> None:
        """Write what changed, all of it or nothing."""
        work = partial(self._save, states=states, entries=entries, gone=gone)
        await self._file.do(work, timeout_s=_TIMEOUT_S, failure=_FAILURE)

    async def erase(self, entry_ids: Collection[str]) -> None:
        """Remove entries so that nothing of them can be read from the file."""

        def work(connection: sqlite3.Connection) -> None:
            self._save(connection, {}, (), entry_ids)
            empty_log(connection)

        await self._file.do(work, timeout_s=_TIMEOUT_S, failure=_FAILURE)

    async def close(self) -> None:
        """Close it."""
        await self._file.close()

    def _load(self, connection: sqlite3.Connection) -> tuple[dict[str, bytes], list[EntryRow]]:
        states = connection.execute("SELECT category, state FROM categories WHERE verifier = ?", (self._verifier,))
        rows = connection.execute(
            "SELECT entry, tenant, category, user, at, mean, variance FROM entries WHERE verifier = ? ORDER BY at",
            (self._verifier,),
        )
        names = EntryRow.__dataclass_fields__
        return dict(states.fetchall()), [EntryRow(**dict(zip(names, row, strict=True))) for row in rows]

    def _save(
        self,
        connection: sqlite3.Connection,
        states: dict[str, bytes],
        entries: Iterable[EntryRow],
        gone: Collection[str],
    ) -> None:
        with connection:
            connection.executemany(
                "INSERT OR REPLACE INTO categories VALUES (?, ?, ?)",
                ((category, self._verifier, state) for category, state in states.items()),
            )
            connection.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (row.entry_id, self._verifier, row.tenant, row.category, row.user, row.at_s, row.mean, row.variance)
                    for row in entries
                ),
            )
            connection.executemany("DELETE FROM entries WHERE entry = ?", ((entry_id,) for entry_id in gone))
