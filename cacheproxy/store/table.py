"""The rows of a store file: SQL and nothing else. Every call blocks; transactions are the caller's."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from cacheproxy.model import Holding, Partition
from cacheproxy.policy.evict import Resident
from cacheproxy.store.codec import Decoded, RecordError, decode, decode_vector
from cacheproxy.store.schema import DamagedError
from cacheproxy.store.size import size_on_disk
from cacheproxy.store.uses import faded

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Entry
    from cacheproxy.store.codec import Encoded, Payload
    from cacheproxy.store.tally import Tally
    from cacheproxy.store.uses import Uses

Found = tuple[Partition, str, "NDArray[np.float32]"]


def load(connection: sqlite3.Connection, entry_id: str) -> Decoded | None:
    """Return one entry, or None when there is none. Raises RecordError when its blobs fail their checks."""
    row = connection.execute(
        "SELECT vector, record FROM documents WHERE n = (SELECT n FROM entries WHERE id = ?)", (entry_id,)
    ).fetchone()
    return None if row is None else decode(row[1], row[0], entry_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorPage:
    """Some vectors of an epoch, in row order; the next begin after row `last`. Ids in `damaged` failed their check."""

    found: list[Found]
    damaged: list[str]
    last: int


def read_page(connection: sqlite3.Connection, epoch: str, after: int, now_s: float, limit: int) -> VectorPage:
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
    return VectorPage(found=found, damaged=damaged, last=rows[-1][0] if rows else after)


def count(connection: sqlite3.Connection) -> list[Holding]:
    """Return what each tenant holds of each category. Raises DamagedError when sizes are not numbers."""
    rows = connection.execute(
        "SELECT category, tenant, count(*), sum(size) FROM entries NOT INDEXED GROUP BY category, tenant"
    ).fetchall()
    if not all(isinstance(size, int) and size >= 0 for _, _, _, size in rows):
        raise DamagedError("sizes are not numbers")
    return [
        Holding(category=str(category), tenant=str(tenant), entries=entries, size_bytes=size)
        for category, tenant, entries, size in rows
    ]


def ids(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield the id of every row, those that are gone included."""
    for (entry_id,) in connection.execute("SELECT id FROM entries"):
        yield str(entry_id)


def size_of(encoded: Encoded) -> int:
    """Return what an entry takes in the file, all its rows included."""
    entry = encoded.entry
    return size_on_disk(encoded.size_bytes, labels_of(entry, entry.partition), entry.tags)


def labels_of(of: Entry | Payload, where: Partition | Payload) -> tuple[str, ...]:
    """Return the texts of a row, each as often as the row and its indexes hold it."""
    category, tenant, user = where.category, of.tenant, of.user
    return category, category, category, tenant, tenant, user, user, where.epoch, of.namespace, of.model, of.second


class _Row(NamedTuple):
    n: int
    size: int
    tags: int
    hits: float
    used_s: float
    category: str
    tenant: str


class Table:
    """The rows, with a running `tally`, which the caller settles or undoes with the transaction."""

    def __init__(self, connection: sqlite3.Connection, tally: Tally) -> None:
        self._connection = connection
        connection.create_function("faded", 2, faded, deterministic=True)
        self.tally = tally

    def put(self, encoded: Encoded, used_s: float) -> None:
        """Insert or replace a row; a replaced one hands on its uses."""
        entry = encoded.entry
        replaced = self._delete(entry.id)
        hits = 0.0 if replaced is None else faded(replaced.hits, used_s - replaced.used_s)
        size = size_of(encoded)
        tags = dict.fromkeys(entry.tags)
        row = self._connection.execute(
            "INSERT INTO entries (id, epoch, category, compatibility, created, gone, used, size, tenant, namespace, "
            "model, user, second, tags, expires, fill_ms, hits) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.id,
                entry.partition.epoch,
                entry.partition.category,
                entry.partition.compatibility,
                entry.created_s,
                entry.gone_s,
                used_s,
                size,
                entry.tenant,
                entry.namespace,
                entry.model,
                entry.user,
                entry.second,
                len(tags),
                entry.expires_s,
                entry.fill_ms,
                hits,
            ),
        ).lastrowid
        if tags:
            self._connection.executemany("INSERT INTO tags (tag, n) VALUES (?, ?)", ((tag, row) for tag in tags))
        self._connection.execute(
            "INSERT OR REPLACE INTO documents (n, vector, record) VALUES (?, ?, ?)",
            (row, encoded.vector, encoded.record),
        )
        self.tally.add(entry.partition.category, entry.tenant, size)

    def delete(self, entry_id: str) -> bool:
        """Delete a row; return whether it was there."""
        return self._delete(entry_id) is not None

    def _delete(self, entry_id: str) -> _Row | None:
        found = self._connection.execute(
            "SELECT n, size, tags, hits, used, category, tenant FROM entries WHERE id = ?", (entry_id,)
        ).fetchone()
        if found is None:
            return None
        row = _Row(*found)
        self._connection.execute("DELETE FROM entries WHERE n = ?", (row.n,))
        self._connection.execute("DELETE FROM documents WHERE n = ?", (row.n,))
        if row.tags:
            self._connection.execute("DELETE FROM tags WHERE n = ?", (row.n,))
        self.tally.remove(str(row.category), str(row.tenant), row.size)
        return row

    def delete_if_damaged(self, entry_id: str) -> bool:
        """Delete a row that does not decode, which may have been replaced since it was found so."""
        try:
            load(self._connection, entry_id)
        except RecordError:
            return self.delete(entry_id)
        return False

    def mark_used(self, uses: Mapping[str, Uses]) -> None:
        """Note how entries were used; unknown ids are ignored."""
        self._connection.executemany(
            "UPDATE entries SET hits = faded(hits, ? - used) + ?, used = max(used, ?) WHERE id = ?",
            ((of.last_s, of.count, of.last_s, id_) for id_, of in uses.items()),
        )

    def gone(self, now_s: float, limit: int) -> list[tuple[str, str]]:
        """Return id and category of what nobody may be served from any more, the longest gone first."""
        return self._connection.execute(
            "SELECT id, category FROM entries WHERE gone <= ? ORDER BY gone LIMIT ?", (now_s, limit)
        ).fetchall()

    def least_recently_used(self, limit: int) -> list[tuple[str, str]]:
        """Return id and category of the longest unused of all categories, in that order."""
        lines = [
            self._connection.execute(
                "SELECT used, n, id, category FROM entries WHERE category = ? ORDER BY used, n LIMIT ?",
                (category, limit),
            ).fetchall()
            for category in self.tally.categories
        ]
        return [(row[2], row[3]) for row in islice(heapq.merge(*lines), limit)]

    def sample(self, category: str, tenant: str | None, limit: int, now_s: float) -> list[Resident]:
        """Return the longest unused entries of a category, or of one tenant of it."""
        whose, named = ("", ()) if tenant is None else (" AND tenant = ?", (tenant,))
        rows = self._connection.execute(
            "SELECT id, tenant, size, hits, used, expires, fill_ms FROM entries "
            f"WHERE category = ?{whose} ORDER BY used LIMIT ?",
            (category, *named, limit),
        ).fetchall()
        return [
            Resident(
                entry_id=entry_id,
                tenant=of,
                size_bytes=size,
                hits=faded(hits, now_s - used_s),
                used_s=used_s,
                expires_s=expires_s,
                fill_ms=fill_ms,
            )
            for entry_id, of, size, hits, used_s, expires_s, fill_ms in rows
        ]

    def owe_scrub(self) -> None:
        """Note that what is removed from now on may be read in free parts of the file until they are scrubbed."""
        self._connection.execute("UPDATE meta SET value = 1 WHERE key = 'scrub'")

    def raise_fence(self, fence: int) -> None:
        """Keep the highest fence."""
        self._connection.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'fence'", (fence,))
