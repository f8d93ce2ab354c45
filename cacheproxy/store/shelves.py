"""Entries in memory, in the order of their use: in all of a category, and of each tenant within."""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, TypeVar

from cacheproxy.policy.evict import Resident
from cacheproxy.store.tally import Tally
from cacheproxy.store.uses import faded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cacheproxy.model import Entry
    from cacheproxy.store.meta import Meta

_Line = tuple[str, str | None]


T = TypeVar("T", "Entry", "Meta")


@dataclass(slots=True, kw_only=True)
class Kept(Generic[T]):
    """An entry with how it was used; `turn` orders all uses of all entries."""

    entry: T
    size_bytes: int
    hits: float
    used_s: float
    turn: int
    row: int
    """Its number in the order of coming, never used again; or what its store orders entries by."""

    @property
    def lines(self) -> tuple[_Line, _Line]:
        """Where it stands: in its category's line, and in its tenant's within."""
        return (self.entry.partition.category, None), (self.entry.partition.category, self.entry.tenant)


class Shelves(Generic[T]):
    """Rows in memory, as a Sweeper reads them."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._kept: dict[str, Kept[T]] = {}
        self._lines: dict[_Line, OrderedDict[str, Kept[T]]] = {}  # the longest unused first
        self._ends: list[tuple[float, str]] = []  # a heap; may hold more than the live entries
        self._turn = 0
        self._rows: list[tuple[int, str]] = []  # in the order of coming; may hold more than the live entries

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[T]:
        """Yield the entries as of the first step, the oldest first."""
        return iter([kept.entry for kept in self._kept.values()])

    def get(self, entry_id: str) -> T | None:
        """Return an entry."""
        kept = self._kept.get(entry_id)
        return None if kept is None else kept.entry

    def put(self, entry: T, size_bytes: int, now_s: float, *, row: int | None = None) -> None:
        """Keep an entry; one of the same id goes and hands on its uses. Rows that are given come from elsewhere."""
        replaced = self._kept.get(entry.id)
        hits = 0.0 if replaced is None else faded(replaced.hits, now_s - replaced.used_s)
        self.delete(entry.id)
        self._turn += 1
        row = self._turn if row is None else row
        kept = Kept(entry=entry, size_bytes=size_bytes, hits=hits, used_s=now_s, turn=self._turn, row=row)
        self._kept[entry.id] = kept
        for line in kept.lines:
            self._lines.setdefault(line, OrderedDict())[entry.id] = kept
        self.tally.add(entry.partition.category, entry.tenant, size_bytes)
        self.tally.settle()
        heapq.heappush(self._ends, (entry.gone_s, entry.id))
        if len(self._ends) > 2 * len(self._kept) + 64:
            self._ends = [(held.entry.gone_s, held.entry.id) for held in self._kept.values()]
            heapq.heapify(self._ends)
        if self._rows and self._rows[-1][0] > kept.row:
            insort(self._rows, (kept.row, entry.id))
        else:
            self._rows.append((kept.row, entry.id))
        if len(self._rows) > 2 * len(self._kept) + 64:
            self._rows = sorted((held.row, held.entry.id) for held in self._kept.values())

    def after(self, row: int, limit: int, ids: Collection[str] = ()) -> list[tuple[int, T]]:
        """Return the next `limit` entries after a row, each with its own; fewer at the end. With `ids`, of these."""
        if ids:
            named = (self._kept.get(id_) for id_ in set(ids))
            rows = ((kept.row, kept.entry) for kept in named if kept is not None and kept.row > row)
            return sorted(rows, key=itemgetter(0))[:limit]
        following = islice(self._rows, bisect_right(self._rows, row, key=itemgetter(0)), None)
        live = (
            (row, self._kept[id_].entry) for row, id_ in following if id_ in self._kept and self._kept[id_].row == row
        )
        return list(islice(live, limit))

    def use(self, entry_id: str, now_s: float, count: int = 1) -> None:
        """Note some uses, the last one now."""
        kept = self._kept[entry_id]
        self._turn += 1
        kept.hits, kept.used_s, kept.turn = faded(kept.hits, now_s - kept.used_s) + count, now_s, self._turn
        for line in kept.lines:
            self._lines[line].move_to_end(entry_id)

    def delete(self, entry_id: str) -> bool:
        """Remove an entry; return whether it was there."""
        kept = self._kept.pop(entry_id, None)
        if kept is None:
            return False
        for line in kept.lines:
            del self._lines[line][entry_id]
            if not self._lines[line]:
                del self._lines[line]
        self.tally.remove(kept.entry.partition.category, kept.entry.tenant, kept.size_bytes)
        self.tally.settle()
        return True

    def gone(self, now_s: float, limit: int) -> list[tuple[str, str]]:
        """Return id and category of what nobody may be served from any more, the longest gone first."""
        found: dict[str, str] = {}
        while self._ends and self._ends[0][0] <= now_s and len(found) < limit:
            kept = self._kept.get(heapq.heappop(self._ends)[1])
            if kept is not None and kept.entry.gone_s <= now_s:  # else purged or replaced meanwhile
                found[kept.entry.id] = kept.entry.partition.category
        return list(found.items())

    def least_recently_used(self, limit: int) -> list[tuple[str, str]]:
        """Return id and category of the longest unused of all categories, in that order."""
        lines = [islice(self._lines[category, None].values(), limit) for category in self.tally.categories]
        oldest = islice(heapq.merge(*lines, key=lambda kept: kept.turn), limit)
        return [(kept.entry.id, kept.entry.partition.category) for kept in oldest]

    def sample(self, category: str, tenant: str | None, limit: int, now_s: float) -> list[Resident]:
        """Return the longest unused of a category, or of one tenant of it."""
        return [
            Resident(
                entry_id=kept.entry.id,
                tenant=kept.entry.tenant,
                size_bytes=kept.size_bytes,
                hits=faded(kept.hits, now_s - kept.used_s),
                used_s=kept.used_s,
                expires_s=kept.entry.expires_s,
                fill_ms=kept.entry.fill_ms,
            )
            for kept in islice(self._lines.get((category, tenant), {}).values(), limit)
        ]
