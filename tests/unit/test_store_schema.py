from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.store.schema import MIGRATIONS, DamagedError, migrate, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = Path("e.db")
NEXT = (*MIGRATIONS, ("ALTER TABLE entries ADD COLUMN extra TEXT NOT NULL DEFAULT ''",))
BROKEN = (*MIGRATIONS, ("CREATE TABLE half (n INTEGER)", "CREATE TABLE half (n INTEGER)"))


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        yield connection


@pytest.mark.parametrize("older", range(len(MIGRATIONS) + 1))
def test_every_older_version_becomes_the_newest(connection: sqlite3.Connection, older: int) -> None:
    migrate(connection, 0, MIGRATIONS[:older])
    assert version_of(connection, PATH) == older
    migrate(connection, older)
    assert version_of(connection, PATH) == len(MIGRATIONS)


def test_a_migration_keeps_the_rows(connection: sqlite3.Connection) -> None:
    migrate(connection, 0)
    connection.execute(
        "INSERT INTO entries (id, epoch, category, compatibility, created, gone, used, size) "
        "VALUES ('a', 'e', 'c', x'00', 1, 2, 1, 10)"
    )
    migrate(connection, version_of(connection, PATH, NEXT), NEXT)
    assert connection.execute("SELECT id, extra FROM entries").fetchall() == [("a", "")]
    assert version_of(connection, PATH, NEXT) == len(NEXT)


def test_entries_of_the_first_version_are_gone_when_they_expire(connection: sqlite3.Connection) -> None:
    migrate(connection, 0, MIGRATIONS[:1])
    connection.execute(
        "INSERT INTO entries (id, epoch, category, compatibility, created, expires, used, size) "
        "VALUES ('a', 'e', 'c', x'00', 1, 2, 1, 10)"
    )
    migrate(connection, 1)
    assert connection.execute("SELECT id, gone FROM entries").fetchall() == [("a", 2.0)]


def test_a_migration_that_fails_changes_nothing(connection: sqlite3.Connection) -> None:
    migrate(connection, 0)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, len(MIGRATIONS), BROKEN)
    assert version_of(connection, PATH) == len(MIGRATIONS)
    assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchall() == []


def test_a_newer_version_is_refused(connection: sqlite3.Connection) -> None:
    migrate(connection, 0, NEXT)
    with pytest.raises(ConfigError, match=rf"schema version {len(NEXT)}, this build knows up to {len(MIGRATIONS)}"):
        version_of(connection, PATH)


def test_a_missing_index_is_damage(connection: sqlite3.Connection) -> None:
    migrate(connection, 0)
    connection.execute("DROP INDEX entries_by_use")
    with pytest.raises(DamagedError, match="entries_by_use"):
        migrate(connection, len(MIGRATIONS))


def test_a_table_the_operator_added_is_left_alone(connection: sqlite3.Connection) -> None:
    migrate(connection, 0)
    connection.execute("CREATE TABLE notes (body TEXT)")
    migrate(connection, len(MIGRATIONS))
    assert connection.execute("SELECT count(*) FROM notes").fetchone() == (0,)
