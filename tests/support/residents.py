"""A store's rows as a sweep sees them, in plain dicts: for tests and simulations of eviction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.policy.evict import Resident
from cacheproxy.store.tally import Tally
from cacheproxy.store.uses import faded

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True, kw_only=True)
class Row:
    """One entry, changed as it is used."""

    entry_id: str
    category: str
    tenant: str
    size_bytes: int
    fill_ms: float
    used_s: float
    expires_s: float
    hits: float = 0.0


class RowModel:
    """`cacheproxy.store.sweeper.Rows` over dicts that keep the order of use."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.rows: dict[str, Row] = {}
        self._lines: dict[tuple[str, str | None], dict[str, Row]] = {}

    def put(self, row: Row) -> None:
        """Keep an entry; a replaced one hands on its uses."""
        replaced = self.rows.get(row.entry_id)
        if replaced is not None:
            row.hits = faded(replaced.hits, row.used_s - replaced.used_s)
            self.delete(row.entry_id)
        self.rows[row.entry_id] = row
        for line in self._standing(row):
            line[row.entry_id] = row
        self.tally.add(row.category, row.tenant, row.size_bytes)
        self.tally.settle()

    def use(self, entry_id: str, now_s: float) -> None:
        """Note a hit."""
        row = self.rows[entry_id]
        row.hits, row.used_s = faded(row.hits, now_s - row.used_s) + 1.0, now_s
        for line in self._standing(row):
            line[entry_id] = line.pop(entry_id)

    def delete(self, entry_id: str) -> bool:
        """Remove an entry."""
        row = self.rows.pop(entry_id, None)
        if row is None:
            return False
        for line in self._standing(row):
            del line[entry_id]
        self.tally.remove(row.category, row.tenant, row.size_bytes)
        self.tally.settle()
        return True

    def gone(self, now_s: float, limit: int) -> list[tuple[str, str]]:
        """Return the expired."""
        found = [(row.entry_id, row.category) for row in self.rows.values() if row.expires_s <= now_s]
        return found[:limit]

    def least_recently_used(self, limit: int) -> list[tuple[str, str]]:
        """Return the longest unused of all."""
        oldest = sorted(self.rows.values(), key=lambda row: row.used_s)[:limit]
        return [(row.entry_id, row.category) for row in oldest]

    def sample(self, category: str, tenant: str | None, limit: int, now_s: float) -> list[Resident]:
        """Return the longest unused of a line."""
        found: list[Resident] = []
        for row in self._lines.get((category, tenant), {}).values():
            if len(found) == limit:
                break
            found.append(
                Resident(
                    entry_id=row.entry_id,
                    tenant=row.tenant,
                    size_bytes=row.size_bytes,
                    hits=faded(row.hits, now_s - row.used_s),
                    used_s=row.used_s,
                    expires_s=row.expires_s,
                    fill_ms=row.fill_ms,
                )
            )
        return found

    def _standing(self, row: Row) -> Iterator[dict[str, Row]]:
        yield self._lines.setdefault((row.category, None), {})
        yield self._lines.setdefault((row.category, row.tenant), {})
