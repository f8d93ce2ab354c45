"""The versions of the policy that were in force, in a file of the data directory; the newest is in force."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.datafile import Form, connect
from cacheproxy.errors import PackError
from cacheproxy.policy.loader import pack_from

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cacheproxy.policy.pack import Pack

KEPT = 200
"""Versions kept; older ones go."""

_FORM = Form(
    what="policies",
    mark=0x63707062,  # `cppb`
    version=1,
    timeout_s=1.0,
    schema="""
CREATE TABLE versions (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    reason TEXT NOT NULL,
    source TEXT NOT NULL,
    settled INTEGER NOT NULL DEFAULT 0,
    pack TEXT NOT NULL
);
""",
)
_COLUMNS = "n, at, actor, action, reason, source, settled, pack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version. `source` is the digest of the pack on disk while it came into force.

    `settled` says that everybody who must act on it has done so: what it no longer allows is erased.
    """

    n: int
    at_s: float
    actor: str
    action: str
    reason: str
    source: str
    settled: bool
    pack_json: str

    def pack(self) -> Pack:
        """Return the pack. Raises PackError where this cacheproxy cannot read it any more."""
        try:
            return pack_from(msgspec.json.decode(self.pack_json))
        except msgspec.MsgspecError as exc:
            raise PackError(f"version {self.n} is not a pack: {exc}") from exc

    def readable(self) -> Pack | None:
        """Return the pack; None where this cacheproxy cannot read it any more."""
        try:
            return self.pack()
        except PackError:
            return None


class VersionFile:
    """The file of one data directory (mode 0600), which one process owns. All calls block: they are for a thread."""

    def __init__(self, path: Path, *, kept: int = KEPT) -> None:
        """Open or create it. Raises ConfigError when it is not ours or cannot be used."""
        self._path = path
        self._kept = kept
        connect(path, _FORM).close()

    def append(self, version: Version) -> None:
        """Keep a version of the next number, over one that never came into force; return once it is on disk.

        Raises sqlite3.Error.
        """
        with self._open() as connection:
            row = (
                version.n,
                version.at_s,
                version.actor,
                version.action,
                version.reason,
                version.source,
                version.settled,
                version.pack_json,
            )
            connection.execute(f"INSERT OR REPLACE INTO versions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            connection.execute("DELETE FROM versions WHERE n <= ?", (version.n - self._kept,))

    def newest(self, *, settled: bool = False) -> Version | None:
        """Return the newest version, or of those that everybody has acted on; None when there is none.

        Raises sqlite3.Error.
        """
        return next(iter(self._read("WHERE settled >= ? ORDER BY n DESC LIMIT 1", int(settled))), None)

    def find(self, n: int) -> Version | None:
        """Return a version, or None when it is not there, or not any more. Raises sqlite3.Error."""
        return next(iter(self._read("WHERE n = ?", n)), None)

    def listed(self) -> list[Version]:
        """Return the versions, newest first, without their packs. Raises sqlite3.Error."""
        return self._read("ORDER BY n DESC LIMIT ?", self._kept, columns=_COLUMNS.replace("pack", "''"))

    def settle(self, n: int) -> None:
        """Note that everybody has acted on a version. Raises sqlite3.Error."""
        with self._open() as connection:
            connection.execute("UPDATE versions SET settled = 1 WHERE n = ?", (n,))

    def _read(self, which: str, value: int, columns: str = _COLUMNS) -> list[Version]:
        with self._open() as connection:
            rows = connection.execute(f"SELECT {columns} FROM versions {which}", (value,))
            return [
                Version(
                    n=n,
                    at_s=at_s,
                    actor=actor,
                    action=action,
                    reason=reason,
                    source=source,
                    settled=bool(settled),
                    pack_json=pack,
                )
                for n, at_s, actor, action, reason, source, settled, pack in rows
            ]

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=_FORM.timeout_s)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            with connection:
                yield connection
