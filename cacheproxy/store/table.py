"""The rows of a store file: SQL and nothing else. Every call blocks; transactions are the caller's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.model import Partition
from cacheproxy.store.codec import Decoded, RecordError, decode, decode_vector
from cacheproxy.store.schema import DamagedError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.store.codec import Encoded

ROW_BYTES = 450
"""What a row takes in the file beyond its two blobs: columns, indexes, page ends (measured)."""

Found = tuple[Partition, str, "NDArray[np.float32]"]


def load(connection: sqlite3.Connection, entry_id: str) -> Decoded | None:
    """Return one entry, or None when there is none. Raises RecordError when its blobs fail their checks."""
    row = connection.execute(
        "SELECT vector, record FROM documents WHERE n = (SELECT n FROM entries WHERE id = ?)", (entry_id,)
    ).fetchone()
    return None if row is None else decode(row[1], row[0], entry_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some vectors of an epoch, in row order; the next begin after row `last`. Ids in `damaged` failed their check."""

    found: list[Found]
    damaged: list[str]
    last: int


def read_page(connection: sqlite3.Connection, epoch: str, after: int, now_s: float, limit: int) -> Page:
    """Return the next `limit` live vectors of an epoch after a row; when there are none, `last` is `after`."""
    found: list[Found] = []
    damaged: list[str] = []
    rows = connection.execute(
        "SELECT e.n, e.id, e.category, e.compatibility, d.vector FROM entries e JOIN documents d ON d.n = e.n "
        "WHERE e.n > ? AND e.epoch = ? AND e.gone > ? AND d.vector IS NOT NULL ORDER BY e.n LIMIT ?",
        (after, epoch, now_s, limit),
    ).fetchall()
    for _, entry_id, category, compatibility, vector in rows:
        partition = Partition(category=category, compatibility=compatibility, epoch=epoch)
        try:
            found.append((partition, entry_id, decode_vector(vector, partition, entry_id)))
        except RecordError:
            damaged.append(entry_id)
    return Page(found=found, damaged=damaged, last=rows[-1][0] if rows else after)


def count(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many entries there are, and their bytes. Raises DamagedError when sizes are not numbers."""
    entries, size = connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM entries").fetchone()
    if not isinstance(size, int) or size < 0:
        raise DamagedError("sizes are not numbers")
    return entries, size


class Table:
    """The rows, with running `totals` (entries, bytes), which the caller sets back after a rollback."""

    def __init__(self, connection: sqlite3.Connection, totals: tuple[int, int]) -> None:
        self._connection = connection
        self.totals = totals

    def put(self, encoded: Encoded, used_s: float) -> None:
        """Insert or replace a row."""
        entry = encoded.entry
        self.delete(entry.id)
        size = encoded.size_bytes + ROW_BYTES
        row = self._connection.execute(
            "INSERT INTO entries (id, epoch, category, compatibility, created, gone, used, size) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.id,
                entry.partition.epoch,
                entry.partition.category,
                entry.partition.compatibility,
                entry.created_s,
                entry.gone_s,
                used_s,
                size,
            ),
        ).lastrowid
        self._connection.execute(
            "INSERT OR REPLACE INTO documents (n, vector, record) VALUES (?, ?, ?)",
            (row, encoded.vector, encoded.record),
        )
        self.totals = self.totals[0] + 1, self.totals[1] + size

    def delete(self, entry_id: str) -> bool:
        """Delete a row; return whether it was there."""
        row = self._connection.execute("SELECT n, size FROM entries WHERE id = ?", (entry_id,)).fetchone()
        if row is None:
            return False
        self._connection.execute("DELETE FROM entries WHERE n = ?", row[:1])
        self._connection.execute("DELETE FROM documents WHERE n = ?", row[:1])
        self.totals = self.totals[0] - 1, self.totals[1] - row[1]
        return True

    def delete_if_damaged(self, entry_id: str) -> bool:
        """Delete a row that does not decode, which may have been replaced since it was found so."""
        try:
            load(self._connection, entry_id)
        except RecordError:
            return self.delete(entry_id)
        return False

    def mark_used(self, used_s: Mapping[str, float]) -> None:
        """Note when entries were last used; unknown ids are ignored."""
        self._connection.executemany(
            "UPDATE entries SET used = ? WHERE id = ?", ((at, id_) for id_, at in used_s.items())
        )

    def gone(self, now_s: float, limit: int) -> list[str]:
        """Return ids that nobody may be served from any more, the longest gone first."""
        rows = self._connection.execute("SELECT id FROM entries WHERE gone <= ? ORDER BY gone LIMIT ?", (now_s, limit))
        return [entry_id for (entry_id,) in rows.fetchall()]

    def least_recently_used(self, limit: int) -> list[str]:
        """Return ids, the longest unused first."""
        rows = self._connection.execute("SELECT id FROM entries ORDER BY used, n LIMIT ?", (limit,))
        return [entry_id for (entry_id,) in rows.fetchall()]

    def raise_fence(self, fence: int) -> None:
        """Keep the highest fence."""
        self._connection.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'fence'", (fence,))
