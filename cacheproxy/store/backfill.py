"""What the columns of version 3 tell of rows that are older: read from their records, once, in steps.

Each step is a transaction that also notes how far it came, so a start that is cut short goes on where it stopped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from cacheproxy.store.codec import Payload, RecordError, open_record
from cacheproxy.store.size import size_on_disk
from cacheproxy.store.table import labels_of

if TYPE_CHECKING:
    import sqlite3

_log = structlog.get_logger()

STEP_ROWS = 1000
_TELL_S = 5.0


def backfill(connection: sqlite3.Connection) -> int:
    """Fill in what older rows lack; return how many were removed because their record is damaged."""
    started_s = told_s = time.monotonic()
    read = damaged = 0
    while (after := _progress(connection)) is not None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            rows, lost = _step(connection, after)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        read, damaged = read + rows, damaged + lost
        if time.monotonic() - told_s >= _TELL_S:
            told_s = time.monotonic()
            _log.info("store_upgrading", entries=read, seconds=round(told_s - started_s))
    if read:
        _log.info("store_upgraded", entries=read, damaged=damaged, seconds=round(time.monotonic() - started_s, 1))
    return damaged


def _progress(connection: sqlite3.Connection) -> int | None:
    """Return the last row that is done, None when all are."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'backfilled'").fetchone()
    return None if row is None else int(row[0])


def _step(connection: sqlite3.Connection, after: int) -> tuple[int, int]:
    """Do the next rows; return how many there were, and how many of them are damaged and therefore gone."""
    rows = connection.execute(
        "SELECT e.n, e.id, d.record, coalesce(length(d.vector), 0) FROM entries e LEFT JOIN documents d ON d.n = e.n "
        "WHERE e.n > ? ORDER BY e.n LIMIT ?",
        (after, STEP_ROWS),
    ).fetchall()
    damaged = 0
    for row, entry_id, record, vector_bytes in rows:
        try:
            payload = open_record(record, entry_id)
            size = size_on_disk(len(record) + vector_bytes, labels_of(payload, payload), payload.tags)
            _fill(connection, row, payload, size)
        except RecordError:
            damaged += 1
            _log.error("record_dropped", entry=entry_id)
            connection.execute("DELETE FROM entries WHERE n = ?", (row,))
            connection.execute("DELETE FROM documents WHERE n = ?", (row,))
    if rows:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'backfilled'", (rows[-1][0],))
    else:
        connection.execute("DELETE FROM meta WHERE key = 'backfilled'")
    return len(rows), damaged


def _fill(connection: sqlite3.Connection, row: int, payload: Payload, size: int) -> None:
    tags = tuple(dict.fromkeys(payload.tags))
    connection.execute(
        "UPDATE entries SET tenant = ?, namespace = ?, model = ?, user = ?, second = ?, tags = ?, expires = ?, "
        "fill_ms = ?, size = ? WHERE n = ?",
        (
            payload.tenant,
            payload.namespace,
            payload.model,
            payload.user,
            payload.second,
            len(tags),
            payload.expires_s,
            payload.fill_ms,
            size,
            row,
        ),
    )
    connection.executemany("INSERT OR IGNORE INTO tags (tag, n) VALUES (?, ?)", ((tag, row) for tag in tags))
