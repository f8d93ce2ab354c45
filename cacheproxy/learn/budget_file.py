"""The file of the error budget: what was learnt of categories and entries, in numbers; no text is in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cacheproxy.datafile import Form, empty_log
from cacheproxy.errors import FeedbackUnavailable
from cacheproxy.filethread import FileThread
from cacheproxy.learn.traces import of_entries

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from cacheproxy.model import Selector

log = structlog.get_logger()

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
_ERASE = "DELETE FROM entries WHERE entry = ?"
_ERASE_MEANT = """
DELETE FROM entries WHERE :any AND :tenant IN ('', tenant) AND :user IN ('', user) AND :category IN ('', category)
AND (:before IS NULL OR at < :before)
"""
"""As `traces.meant` says."""
_OTHERS = (
    ("categories", "DELETE FROM categories WHERE verifier <> ?"),
    ("entries", "DELETE FROM entries WHERE verifier <> ?"),
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
    """One file of what was learnt with one verifier: another one's probabilities mean something else, and are dropped.

    Without a verifier (`verifier` is "") nothing is dropped: what was learnt waits for its own to come back. To be
    closed once it was opened. Raises FeedbackUnavailable where nothing else is said.
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

    async def erase(self, selector: Selector, entry_ids: Collection[str]) -> set[str]:
        """Remove entries so that nothing of them can be read from the file, whosever verifier they were learnt with.

        These, and all of which everything that the selector gives holds. Returns those that were there.
        """

        def work(connection: sqlite3.Connection) -> set[str]:
            with connection:
                found = {row[0] for row in connection.execute(f"{_ERASE_MEANT} RETURNING entry", _named(selector))}
                for entry_id in entry_ids:
                    if connection.execute(_ERASE, (entry_id,)).rowcount:
                        found.add(entry_id)
            empty_log(connection)
            return found

        return await self._file.do(work, timeout_s=_TIMEOUT_S, failure=_FAILURE)

    async def close(self) -> None:
        """Close it."""
        await self._file.close()

    def _load(self, connection: sqlite3.Connection) -> tuple[dict[str, bytes], list[EntryRow]]:
        if self._verifier:
            self._drop_others(connection)
        states = connection.execute("SELECT category, state FROM categories WHERE verifier = ?", (self._verifier,))
        rows = connection.execute(
            "SELECT entry, tenant, category, user, at, mean, variance FROM entries WHERE verifier = ? ORDER BY at",
            (self._verifier,),
        )
        names = EntryRow.__dataclass_fields__
        return dict(states.fetchall()), [EntryRow(**dict(zip(names, row, strict=True))) for row in rows]

    def _drop_others(self, connection: sqlite3.Connection) -> None:
        """Remove what was learnt with another verifier: it is of no use any more, and remembers all the same."""
        with connection:
            gone = {what: connection.execute(drop, (self._verifier,)).rowcount for what, drop in _OTHERS}
        if any(gone.values()):
            empty_log(connection)
            log.warning("budget_of_another_verifier_dropped", verifier=self._verifier, **gone)

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
            connection.executemany(_ERASE, ((entry_id,) for entry_id in gone))


def _named(selector: Selector) -> dict[str, object]:
    """Return what a selector says of the columns of a row; of `any` other than 1 it means none by them."""
    by_row = bool(selector) and not of_entries(selector)
    return {
        "any": int(by_row),
        "tenant": selector.tenant,
        "user": selector.user,
        "category": selector.category,
        "before": selector.before_s,
    }
