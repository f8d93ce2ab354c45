"""The file of the error budget: what was learnt of categories and entries, in numbers; no text is in it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

_APPLICATION_ID = 0x63706562  # `cpeb`
_VERSION = 1
_SCHEMA = f"""
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
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
"""


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
    """One sqlite file (mode 0600), used by one thread at a time. Everything raises sqlite3.Error when it fails.

    What was learnt with another verifier is not read: its probabilities mean something else.
    """

    def __init__(self, path: Path, verifier: str) -> None:
        self._verifier = verifier
        self._connection = _open(path)

    def load(self) -> tuple[dict[str, bytes], list[EntryRow]]:
        """Return the states of the categories, and what is known of entries, the oldest first."""
        states = self._connection.execute(
            "SELECT category, state FROM categories WHERE verifier = ?", (self._verifier,)
        ).fetchall()
        rows = self._connection.execute(
            "SELECT entry, tenant, category, user, at, mean, variance FROM entries WHERE verifier = ? ORDER BY at",
            (self._verifier,),
        )
        names = EntryRow.__dataclass_fields__
        return dict(states), [EntryRow(**dict(zip(names, row, strict=True))) for row in rows]

    def save(self, states: dict[str, bytes], entries: Iterable[EntryRow], gone: Collection[str]) -> None:
        """Write what changed, all of it or nothing."""
        with self._connection as connection:
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

    def erase(self, entry_ids: Collection[str]) -> None:
        """Remove entries so that nothing of them can be read from the file."""
        self.save({}, (), entry_ids)
        busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError("another program reads the file")

    def close(self) -> None:
        """Close it."""
        self._connection.close()


def _open(path: Path) -> sqlite3.Connection:
    """Open or create the file. Raises ConfigError when it is not ours or cannot be used."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with contextlib.ExitStack() as on_failure:
            connection = sqlite3.connect(path, timeout=0.1, check_same_thread=False)
            on_failure.callback(connection.close)
            application, version = (
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if (application, version) == (0, 0) and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                connection.executescript(_SCHEMA)
            elif application != _APPLICATION_ID or version != _VERSION:
                raise ConfigError(f"{path}: not a file of an error budget of this version; move it aside")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")
            on_failure.pop_all()
            return connection
    except (OSError, sqlite3.Error) as exc:
        why = f"cannot be used for the error budget ({exc}); move it aside, or mend the disk"
        raise ConfigError(f"{path}: {why}") from exc
