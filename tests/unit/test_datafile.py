from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from cacheproxy.datafile import Form, connect, empty_log
from cacheproxy.errors import ConfigError, FeedbackUnavailable
from cacheproxy.filethread import FileThread

if TYPE_CHECKING:
    from pathlib import Path

FORM = Form(
    what="notes",
    mark=0x1234,
    version=2,
    pragmas=("journal_mode = WAL", "secure_delete = ON"),
    schema="CREATE TABLE notes (text TEXT);",
    upgrades={1: "ALTER TABLE notes RENAME COLUMN words TO text; PRAGMA user_version = 2;"},
)


def sql(path: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def test_a_new_file_is_private_and_known_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "notes.sqlite3"
    for count in (1, 2):
        with contextlib.closing(connect(path, FORM)) as connection, connection:
            connection.execute("INSERT INTO notes VALUES ('a')")
            assert connection.execute("SELECT count(*) FROM notes").fetchone() == (count,)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE notes (text TEXT)",
        "CREATE TABLE notes (text TEXT); PRAGMA application_id = 0x1235; PRAGMA user_version = 2",
        "CREATE TABLE notes (text TEXT); PRAGMA application_id = 0x1234; PRAGMA user_version = 3",
        "PRAGMA application_id = 0x1235",
    ],
    ids=["unmarked", "another mark", "a later version", "another mark, empty"],
)
def test_a_file_of_another_form_is_refused_untouched(tmp_path: Path, script: str) -> None:
    path = tmp_path / "notes.sqlite3"
    sql(path, script)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not a file of notes of this version; move it aside"):
        connect(path, FORM)
    assert path.read_bytes() == before


def test_what_is_no_database_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite3"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be used for notes"):
        connect(path, FORM)


def test_a_file_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite3"
    sql(path, "CREATE TABLE notes (words TEXT); PRAGMA application_id = 0x1234; PRAGMA user_version = 1")
    with contextlib.closing(connect(path, FORM)) as connection:
        assert connection.execute("SELECT text FROM notes").fetchall() == []
    connect(path, FORM).close()


def test_an_emptied_log_holds_nothing_of_what_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite3"
    with contextlib.closing(connect(path, FORM)) as connection:
        for statement in ("INSERT INTO notes VALUES ('a secret of hers')", "DELETE FROM notes"):
            with connection:
                connection.execute(statement)
        assert b"a secret of hers" in b"".join(file.read_bytes() for file in tmp_path.iterdir())
        empty_log(connection)
        assert b"a secret of hers" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


async def test_a_file_that_cannot_be_read_is_the_operators_to_mend(tmp_path: Path) -> None:
    file = FileThread(tmp_path / "notes.sqlite3", FORM, FeedbackUnavailable)
    with pytest.raises(ConfigError, match="cannot be used for notes"):
        await file.open(lambda connection: connection.execute("SELECT * FROM missing"))


async def test_work_that_fails_is_told_as_a_failure_of_feedback(tmp_path: Path) -> None:
    file = FileThread(tmp_path / "notes.sqlite3", FORM, FeedbackUnavailable)
    with pytest.raises(FeedbackUnavailable, match="not kept"):
        await file.do(lambda connection: None, timeout_s=10, failure="not kept")  # it was not opened
    await file.open(lambda connection: None)
    with pytest.raises(FeedbackUnavailable, match="not kept"):
        await file.do(lambda connection: connection.execute("DELETE FROM missing"), timeout_s=10, failure="not kept")
    await file.close()
