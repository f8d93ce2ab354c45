"""Entries in this process's memory, gone with it."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING, Self

from cacheproxy.errors import StoreUnavailable
from cacheproxy.store.caps import SWEEP_LIMIT, Caps
from cacheproxy.store.codec import encode
from cacheproxy.store.fences import Fences

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy import settings
    from cacheproxy.model import Entry, Partition
    from cacheproxy.ports import Clock


class MemoryStore:
    """An EntryStore without a file, for tests and for proxies that may forget; `async with` forgets at its end.

    Bytes are counted as SqliteStore counts them, by an entry's record, so that both keep about the same under one cap.
    """

    corrupt_records = 0
    quarantined = 0

    def __init__(self, limits: settings.Store, clock: Clock) -> None:
        self._clock = clock
        self._caps = Caps(max_entries=limits.max_entries, max_bytes=limits.max_bytes)
        self._entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()  # the least recently used first
        self._ends: list[tuple[float, str]] = []  # a heap; may hold more than the live entries
        self._size_bytes = 0
        self._fences = Fences()

    async def __aenter__(self) -> Self:
        """Enter."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Forget everything."""
        self._entries.clear()
        self._ends.clear()
        self._size_bytes = 0

    @property
    def fence(self) -> int:
        """A number that every purge raises."""
        return self._fences.current

    @property
    def over_cap(self) -> bool:
        """Whether a sweep is due for size."""
        return self._caps.over(len(self._entries), self._size_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes of all records."""
        return self._size_bytes

    def __len__(self) -> int:
        """Count entries, those included that are gone and were not swept yet."""
        return len(self._entries)

    def health(self) -> str:
        """Return "": memory always works."""
        return ""

    async def get(self, entry_id: str) -> Entry | None:
        """Return an entry that is not gone."""
        held = self._entries.get(entry_id)
        if held is None or self._clock.now() >= held[0].gone_s:
            return None
        self._entries.move_to_end(entry_id)
        return held[0]

    async def put(self, entry: Entry, fence: int) -> bool:
        """Keep an entry. It and its body are the store's from here on."""
        if not self._fences.admits(entry.id, fence):
            return False
        if self._caps.full(len(self._entries), self._size_bytes):
            raise StoreUnavailable("memory: too far above the store's caps; nothing is taken until a sweep")
        encoded = encode(entry)
        self._remove(entry.id)
        self._entries[entry.id] = encoded.entry, encoded.size_bytes
        self._size_bytes += encoded.size_bytes
        heapq.heappush(self._ends, (entry.gone_s, entry.id))
        if len(self._ends) > 2 * len(self._entries) + 64:
            self._ends = [(held.gone_s, held.id) for held, _ in self._entries.values()]
            heapq.heapify(self._ends)
        return True

    async def purge(self, entry_ids: Collection[str]) -> int:
        """Remove entries, and refuse the fills of them that have begun."""
        ids = tuple(dict.fromkeys(entry_ids))
        self._fences.put_up(ids)
        return sum(self._remove(entry_id) for entry_id in ids)

    async def sweep(self) -> list[str]:
        """Remove at most SWEEP_LIMIT entries: those gone first, then the least recently used above the caps."""
        removed = self._sweep_gone()
        if self.over_cap:
            while len(removed) < SWEEP_LIMIT and self._caps.above_target(len(self._entries), self._size_bytes):
                removed.append(next(iter(self._entries)))
                self._remove(removed[-1])
        return removed

    async def scan(self, epoch: str) -> AsyncIterator[tuple[Partition, str, NDArray[np.float32]]]:
        """Yield each live entry's partition, id and vector, as of the first step."""
        now_s = self._clock.now()
        for entry, _ in list(self._entries.values()):
            if entry.partition.epoch == epoch and entry.vector is not None and now_s < entry.gone_s:
                yield entry.partition, entry.id, entry.vector

    def _sweep_gone(self) -> list[str]:
        now_s = self._clock.now()
        removed: list[str] = []
        while self._ends and self._ends[0][0] <= now_s and len(removed) < SWEEP_LIMIT:
            _, entry_id = heapq.heappop(self._ends)
            held = self._entries.get(entry_id)
            if held is not None and held[0].gone_s <= now_s:  # else purged or replaced meanwhile
                self._remove(entry_id)
                removed.append(entry_id)
        return removed

    def _remove(self, entry_id: str) -> bool:
        held = self._entries.pop(entry_id, None)
        if held is None:
            return False
        self._size_bytes -= held[1]
        return True
