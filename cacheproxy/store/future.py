"""Rows that say they come from the future: the wall clock was set back while no process was there to notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    import sqlite3

SKEW_S = 5.0
"""How far ahead a row may be: a clock that was a little fast before the restart."""

_log = structlog.get_logger()


def drop_future(connection: sqlite3.Connection, now_s: float) -> int:
    """Remove rows created after `now_s`, whose age nobody can tell; no use is later than now. Return how many went."""
    newest, used = connection.execute(
        "SELECT coalesce(max(created), 0), coalesce(max(used), 0) FROM entries NOT INDEXED"
    ).fetchone()
    removed = 0
    connection.execute("BEGIN IMMEDIATE")
    try:
        if newest > now_s + SKEW_S:
            future = "SELECT n FROM entries WHERE created > ?"
            connection.execute(f"DELETE FROM documents WHERE n IN ({future})", (now_s + SKEW_S,))
            connection.execute(f"DELETE FROM tags WHERE n IN ({future})", (now_s + SKEW_S,))
            removed = connection.execute("DELETE FROM entries WHERE created > ?", (now_s + SKEW_S,)).rowcount
        if used > now_s:
            connection.execute("UPDATE entries SET used = ? WHERE used > ?", (now_s, now_s))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    if removed:
        _log.warning(
            "store_future_dropped", entries=removed, ahead_s=round(newest - now_s), what="the clock was set back"
        )
    return removed
