"""The file: opened under its lock, checked, brought to this version, or moved aside when it is damaged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cacheproxy.datafile import files_aside, moved_aside
from cacheproxy.errors import ConfigError
from cacheproxy.store.backfill import backfill
from cacheproxy.store.ballast import Ballast
from cacheproxy.store.condition import primary_code, unavailable
from cacheproxy.store.future import drop_future
from cacheproxy.store.known import Known
from cacheproxy.store.lock import FileLock
from cacheproxy.store.schema import DamagedError, migrate, version_of
from cacheproxy.store.table import count, ids
from cacheproxy.store.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = structlog.get_logger()

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_MISCONFIGURED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}


class Database:
    """A store file that this process owns: one connection to write, one to read, each for one thread at a time.

    `quarantined` counts damaged files that opening it moved aside; `fence` is the highest one that was kept; `tally`
    is what it held when opened, `known` its ids; `unscrubbed` tells that an erasure was cut short. `ballast` is room
    for removals, `damaged` how many records an upgrade dropped.
    """

    def __init__(
        self, path: Path, *, busy_timeout_ms: int, now_s: float, factory: type[sqlite3.Connection], most_entries: int
    ) -> None:
        """Open or create the file; `now_s` names a damaged one that is moved aside, and no row is younger.

        Raises ConfigError for a file that is in use, of another application, of a newer schema or not accessible, and
        StoreUnavailable when the disk fails.
        """
        self.path = path
        self.quarantined = 0
        self.damaged = 0
        self._now_s = now_s
        self._timeout_s = busy_timeout_ms / 1000
        self._factory = factory
        self._most_entries = most_entries
        if path.is_dir():
            raise ConfigError(f"{path} is a directory; give --store a file")
        with _translated(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FileLock(path)
        if path.exists() and path.stat().st_size == 0 and not path.with_name(f"{path.name}-wal").exists():
            _log.warning(
                "store_file_empty", file=str(path), what="a start that was cut short, or a loss of all entries"
            )
        self.ballast = Ballast(path)
        try:
            with _translated(path):
                try:
                    self._open()
                except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:  # the latter: a message quotes damaged text
                    if primary_code(exc) in _DAMAGE:
                        self._quarantine(exc)
                    elif primary_code(exc) != sqlite3.SQLITE_FULL or not self.ballast.release():
                        raise
                    self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        with contextlib.ExitStack() as on_failure:
            self.writer = on_failure.enter_context(contextlib.closing(self._connect()))
            version = version_of(self.writer, self.path)
            if _pragma(self.writer, "journal_mode = WAL") != "wal":
                raise ConfigError(f"{self.path}: its file system cannot hold a write-ahead log; put it on a local disk")
            # A commit survives the end of this process, however it ends; a loss of power may take the last ones.
            self.writer.execute("PRAGMA synchronous = NORMAL")
            self.writer.execute("PRAGMA journal_size_limit = 67108864")
            self.writer.execute("PRAGMA cache_size = -8192")
            self.writer.execute("PRAGMA secure_delete = ON")
            migrate(self.writer, version)
            self.damaged += backfill(self.writer)
            meta = dict(self.writer.execute("SELECT key, value FROM meta"))
            if not all(isinstance(meta.get(key), int) for key in ("fence", "clean", "scrub")):
                raise DamagedError("meta is not what was written")
            self.fence: int = meta["fence"]
            self.unscrubbed = bool(meta["scrub"])
            # Reading the whole file takes about a second per GB: only when the last owner did not say goodbye.
            # After that a damaged document is still found by its own checksum.
            self._check("quick_check(entries)" if meta["clean"] else "quick_check")
            drop_future(self.writer, self._now_s)
            self.tally = Tally(count(self.writer))
            self.known = Known(self._most_entries, ids(self.writer))
            self.writer.execute("UPDATE meta SET value = 0 WHERE key = 'clean'")
            self.reader = on_failure.enter_context(contextlib.closing(self._connect()))
            self.reader.execute("PRAGMA query_only = ON")
            on_failure.pop_all()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,  # opened and closed in the writer's thread, read in the reader's
            factory=self._factory,
        )
        # Damaged text must reach the checksums rather than fail a whole query.
        connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        return connection

    def _check(self, pragma: str) -> None:
        if (problem := _pragma(self.writer, pragma)) != "ok":
            raise DamagedError(str(problem))

    def _quarantine(self, exc: sqlite3.DatabaseError | UnicodeDecodeError) -> None:
        aside = moved_aside(self.path, self._now_s)
        self.quarantined += 1
        _log.error("store_quarantined", file=str(self.path), moved_to=str(aside), fault=str(exc))

    def scrub(self) -> None:
        """Rewrite the file, so that nothing of what was removed is left in free parts of it or in its log.

        Deleted cells are zeroed anyway (secure_delete), but SQLite leaves copies where it moved them before, when it
        split or merged pages. Raises sqlite3.Error; needs as much free disk as the file takes, and in SQLite's
        temporary directory, too.
        """
        self.writer.execute("VACUUM")
        self.fold()
        self.writer.execute("UPDATE meta SET value = 0 WHERE key = 'scrub'")
        if aside := files_aside(self.path):
            _log.warning("store_moved_aside_files_remain", files=aside, what="may hold what was erased: remove them")

    def fold(self) -> None:
        """Fold the log into the file and empty it. Raises sqlite3.Error, also while another program reads the file."""
        busy, _, _ = self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            failure = sqlite3.OperationalError("the log could not be emptied: the file is being read")
            failure.sqlite_errorcode, failure.sqlite_errorname = sqlite3.SQLITE_BUSY, "SQLITE_BUSY"
            raise failure

    def close(self, *, clean: bool) -> None:
        """Fold the log into the file and let another process in; `clean` spares the next open a full check."""
        try:
            with contextlib.suppress(sqlite3.Error):
                self.writer.execute("UPDATE meta SET value = ? WHERE key = 'clean'", (int(clean),))
            self.reader.close()
            self.writer.close()  # the last connection's close runs the checkpoint
        finally:
            self._lock.release()


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; choose a writable --data-dir or --store") from exc
    except sqlite3.Error as exc:
        if primary_code(exc) in _MISCONFIGURED:
            raise ConfigError(f"{path}: cannot be opened for writing ({exc}); check its permissions") from exc
        raise unavailable(exc, path, "open") from exc


def _pragma(connection: sqlite3.Connection, pragma: str) -> object:
    row = connection.execute(f"PRAGMA {pragma}").fetchone()
    return row[0] if row else None
