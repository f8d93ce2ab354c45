"""What is wrong with a store's file, in SQLite's words and in ours."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

_log = structlog.get_logger()

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_REMEDY = {
    sqlite3.SQLITE_FULL: "the disk or the quota is full: make room",
    sqlite3.SQLITE_IOERR: "the disk fails or is full: check it",
    sqlite3.SQLITE_READONLY: "the file became read-only: check its permissions and mount",
    sqlite3.SQLITE_BUSY: "another program holds its lock: close it",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restart to have it moved aside",
    sqlite3.SQLITE_NOTADB: "the file is damaged: restart to have it moved aside",
}


def primary_code(exc: BaseException | None) -> int:
    """Return SQLite's primary result code, SQLITE_ERROR for an exception that has none."""
    return int(getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def unavailable(exc: Exception, path: Path, doing: str) -> StoreUnavailable:
    """Return what a caller gets for a failed `doing` ("read", "write")."""
    name = getattr(exc, "sqlite_errorname", type(exc).__name__)
    remedy = _REMEDY.get(primary_code(exc), "see the log")
    return StoreUnavailable(f"{path.name}: {doing} failed ({name}); {remedy}")


class Condition:
    """What fails now, by operation; each change is logged once. Damage stays until the file is opened anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._faults: dict[str, str] = {}
        self.damaged = False

    def report(self, doing: str, failure: StoreUnavailable | None) -> None:
        """Note how a `doing` ended."""
        if failure is not None and isinstance(failure.__cause__, sqlite3.Error):
            self.damaged |= primary_code(failure.__cause__) in _DAMAGE
        fault = "" if failure is None else failure.message
        if fault == self._faults.get(doing, ""):
            return
        self._faults[doing] = fault
        if fault:
            _log.error("store_degraded", file=str(self._path), operation=doing, fault=fault)
        else:
            _log.info("store_recovered", file=str(self._path), operation=doing)

    def __str__(self) -> str:
        """Return "" when all is well."""
        faults = [fault for fault in self._faults.values() if fault]
        if self.damaged and not faults:
            faults = [f"{self._path.name}: {_REMEDY[sqlite3.SQLITE_CORRUPT]}"]
        return "; ".join(faults)
