"""What a store file looks like, and the way from every older version to this one.

`entries` holds what is queried and stays small; `documents` holds the two blobs of the same row number, the vector
first so that reading it does not touch the answer behind it. A migration is one tuple of statements, never changed once
released.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

APPLICATION_ID = 0x63707879
"""`cpxy`: in the file's header, so that nobody else's database is taken for ours."""

Migration = tuple[str, ...]

MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE entries (
            n INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            epoch TEXT NOT NULL,
            category TEXT NOT NULL,
            compatibility BLOB NOT NULL,
            created REAL NOT NULL,
            expires REAL NOT NULL,
            used REAL NOT NULL,
            size INTEGER NOT NULL
        )""",
        "CREATE INDEX entries_by_expiry ON entries (expires)",
        "CREATE INDEX entries_by_use ON entries (used)",
        "CREATE TABLE documents (n INTEGER PRIMARY KEY, vector BLOB, record BLOB NOT NULL)",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
        "INSERT INTO meta (key, value) VALUES ('fence', 0), ('clean', 1)",
        f"PRAGMA application_id = {APPLICATION_ID}",
    ),
    (
        # When a row may be removed: past its expiry, where it may still be served stale.
        "ALTER TABLE entries RENAME COLUMN expires TO gone",
        "DROP INDEX entries_by_expiry",
        "CREATE INDEX entries_by_end ON entries (gone)",
    ),
    (
        # Whose a row is and how it is used, as selection and eviction ask it. `hits` counts uses, each weighing half
        # after a while (store/uses.py), as of `used`. What older rows hold of it is in their records: backfill.py.
        "ALTER TABLE entries ADD COLUMN tenant TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE entries ADD COLUMN namespace TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE entries ADD COLUMN model TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE entries ADD COLUMN user TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE entries ADD COLUMN second TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE entries ADD COLUMN tags INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE entries ADD COLUMN expires REAL NOT NULL DEFAULT 0",
        "ALTER TABLE entries ADD COLUMN fill_ms REAL NOT NULL DEFAULT 0",
        "ALTER TABLE entries ADD COLUMN hits REAL NOT NULL DEFAULT 0",
        "CREATE INDEX entries_by_holder ON entries (category, tenant, used)",
        "DROP INDEX entries_by_use",
        "CREATE INDEX entries_by_use ON entries (category, used)",
        "CREATE INDEX entries_by_user ON entries (user) WHERE user != ''",
        "CREATE TABLE tags (tag TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (tag, n)) WITHOUT ROWID",
        "CREATE INDEX tags_by_row ON tags (n)",
        "INSERT INTO meta (key, value) SELECT 'backfilled', 0 WHERE EXISTS (SELECT 1 FROM entries)",
        "INSERT INTO meta (key, value) VALUES ('scrub', 0)",
    ),
)


class DamagedError(sqlite3.DatabaseError):
    """The file is ours but its content is not what we wrote."""


def version_of(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Return the file's schema version, 0 for an empty one, changing nothing.

    Raises ConfigError for somebody else's database and for a version newer than this build's.
    """
    application = _integer(connection, "PRAGMA application_id")
    version = _integer(connection, "PRAGMA user_version")
    if application == 0 and _integer(connection, "SELECT count(*) FROM sqlite_master") == 0:
        return 0
    if application != APPLICATION_ID:
        raise ConfigError(f"{path} is a database of another application; give --store a file of its own")
    if version > len(migrations):
        raise ConfigError(
            f"{path} has schema version {version}, this build knows up to {len(migrations)}: "
            "run the newer cacheproxy, or give --store another file"
        )
    return version


def migrate(connection: sqlite3.Connection, version: int, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring a file of `version` to the newest one, each step in a transaction of its own.

    Raises DamagedError when the result lacks a table or an index of the newest version.
    """
    _apply(connection, version, migrations)
    if missing := _shape_of(migrations) - _shape(connection):
        raise DamagedError(f"schema lacks {', '.join(sorted(name for name, _ in missing))}")


def _apply(connection: sqlite3.Connection, version: int, migrations: Sequence[Migration]) -> None:
    for number, statements in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in (*statements, f"PRAGMA user_version = {number}"):
                connection.execute(statement)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _shape_of(migrations: Sequence[Migration]) -> set[tuple[str, str]]:
    model = sqlite3.connect(":memory:", isolation_level=None)
    try:
        _apply(model, 0, migrations)
        return _shape(model)
    finally:
        model.close()


def _shape(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    return set(connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_master"))


def _integer(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])
