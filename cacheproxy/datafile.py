"""A small sqlite file of the data directory: private, known by its mark, and not touched when it is another's."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError, DamagedFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


_ASIDE = ".corrupt-"
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a file is of, as messages say it, and how that is known: SQLite's application id, and a version."""

    what: str
    mark: int
    version: int
    schema: str
    pragmas: tuple[str, ...] = ()
    """Set on every opening."""
    upgrades: Mapping[int, str] = field(default_factory=dict)
    """By an earlier version: the script that makes this one of it, and says so (`PRAGMA user_version`)."""
    timeout_s: float = 0.1
    """Longest wait for another program that holds the file."""


def connect(path: Path, form: Form) -> sqlite3.Connection:
    """Open or create a file (mode 0600), to be used by one thread at a time.

    Raises ConfigError when it is not of this form, or cannot be used: DamagedFile where what it holds is to blame.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with contextlib.ExitStack() as on_failure:
            connection = sqlite3.connect(path, timeout=form.timeout_s, check_same_thread=False)
            on_failure.callback(connection.close)
            mark, version = (_pragma(connection, name) for name in ("application_id", "user_version"))
            if (mark, version) == (0, 0) and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                marks = f"PRAGMA application_id = {form.mark}; PRAGMA user_version = {form.version};"
                connection.executescript(form.schema + marks)
            elif mark == form.mark and version in form.upgrades:
                connection.executescript(form.upgrades[version])
            elif (mark, version) != (form.mark, form.version):
                raise ConfigError(f"{path}: not a file of {form.what} of this version; move it aside")
            for pragma in form.pragmas:
                connection.execute(f"PRAGMA {pragma}")
            on_failure.pop_all()
            return connection
    except (OSError, sqlite3.Error) as exc:
        raise unusable(path, form, exc) from exc


def unusable(path: Path, form: Form, exc: Exception) -> ConfigError:
    """Return the error that tells an operator of a file that cannot be used."""
    kind = DamagedFile if _code(exc) in _DAMAGE else ConfigError
    return kind(f"{path}: cannot be used for {form.what} ({exc}); move it aside, or mend the disk")


def check_whole(connection: sqlite3.Connection) -> None:
    """Read all of a file, about a second per GB. Raises sqlite3.Error where it is not as it was written."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        failure = sqlite3.DatabaseError(str(found))
        failure.sqlite_errorcode, failure.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
        raise failure


def moved_aside(path: Path, now_s: float) -> Path:
    """Rename a file, with what SQLite wrote beside it, so that a new one can be made; return its name. Raises OSError.

    `now_s` is in the name; nothing is ever replaced.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    aside, number = path.with_name(f"{path.name}{_ASIDE}{stamp}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{_ASIDE}{stamp}-{number}")
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(aside.with_name(aside.name + suffix))
    return aside


def files_aside(path: Path) -> list[str]:
    """Return the names of what was moved aside from a path: it may hold what was erased since."""
    return sorted(one.name for one in path.parent.glob(f"{path.name}{_ASIDE}*"))


def empty_log(connection: sqlite3.Connection) -> None:
    """Fold the write-ahead log into the file and empty it: it still holds pages of before a deletion.

    Raises sqlite3.Error, also while another program reads the file.
    """
    busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError("another program reads the file")


def _code(exc: Exception) -> int:
    """Return SQLite's primary error code, 0 for any other error."""
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
