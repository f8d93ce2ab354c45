"""Entries in this process's memory, gone with it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Self

from cacheproxy.errors import StoreUnavailable
from cacheproxy.ports import Page
from cacheproxy.store.caps import Caps
from cacheproxy.store.codec import encode
from cacheproxy.store.erasures import Erasures
from cacheproxy.store.fences import Fences
from cacheproxy.store.selection import meaning
from cacheproxy.store.shelves import Shelves
from cacheproxy.store.sweeper import Sweeper, plain
from cacheproxy.store.table import size_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy import settings
    from cacheproxy.model import Entry, Holding, Partition, Quota, Selector
    from cacheproxy.policy.evict import Cause
    from cacheproxy.ports import Clock


STEP_ROWS = 5_000
"""Entries that one step of a selection looks through."""


class MemoryStore:
    """An EntryStore without a file, for tests and for proxies that may forget; `async with` forgets at its end.

    Bytes are counted as SqliteStore counts them, so that both keep about the same under one cap.
    `quotas` are asked for at each sweep.
    """

    corrupt_records = 0
    quarantined = 0

    def __init__(
        self, limits: settings.Store, clock: Clock, *, quotas: Callable[[], Mapping[str, Quota]] = plain
    ) -> None:
        self._clock = clock
        self._caps = Caps(max_entries=limits.max_entries, max_bytes=limits.max_bytes)
        self._sweeper = Sweeper(caps=self._caps, quotas=quotas)
        self._shelves: Shelves[Entry] = Shelves()
        self._fences = Fences()
        self._erasures = Erasures()
        self.evictions: Counter[tuple[str, Cause]] = Counter()
        """How many entries sweeps removed, by category and cause."""

    async def __aenter__(self) -> Self:
        """Enter."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Forget everything."""
        self._shelves = Shelves()

    @property
    def fence(self) -> int:
        """A number that every purge raises."""
        return self._fences.current

    @property
    def over_cap(self) -> bool:
        """Whether a sweep is due for size."""
        return self._caps.over(*self._shelves.tally.totals)

    @property
    def size_bytes(self) -> int:
        """Bytes of all entries."""
        return self._shelves.tally.totals[1]

    def holdings(self) -> list[Holding]:
        """Return what each tenant holds of each category."""
        return self._shelves.tally.holdings()

    def __len__(self) -> int:
        """Count entries, those included that are gone and were not swept yet."""
        return len(self._shelves)

    def health(self) -> str:
        """Return "": memory always works."""
        return ""

    async def get(self, entry_id: str) -> Entry | None:
        """Return an entry that is not gone."""
        entry, now_s = self._shelves.get(entry_id), self._clock.now()
        if entry is None or now_s >= entry.gone_s or self._erasures.hide(entry):
            return None
        self._shelves.use(entry_id, now_s)
        return entry

    def still_holds(self, entry: Entry, fence: int) -> bool:
        """Whether neither it nor the one whose answer it repeats was removed since the fence was `fence`."""
        admitted = all(self._fences.admits(one, fence) for one in (entry.id, entry.alias_of) if one)
        return admitted and not self._erasures.hide(entry)

    async def put(self, entry: Entry, fence: int) -> bool:
        """Keep an entry. It and its body are the store's from here on."""
        if not self._fences.admits(entry.id, fence):
            return False
        if self._caps.full(*self._shelves.tally.totals):
            raise StoreUnavailable("memory: too far above the store's caps; nothing is taken until a sweep")
        encoded = encode(entry)
        self._shelves.put(encoded.entry, size_of(encoded), self._clock.now())
        return True

    async def purge(self, entry_ids: Collection[str]) -> int:
        """Remove entries, and refuse the fills of them that have begun."""
        ids = tuple(dict.fromkeys(entry_ids))
        self._fences.put_up(ids)
        return sum(self._shelves.delete(entry_id) for entry_id in ids)

    async def sweep(self) -> list[str]:
        """Remove at most SWEEP_LIMIT entries: those gone first, then, above the caps, what policy says is to go."""
        await asyncio.sleep(0)  # one sweep after the other would hold up the loop
        removed = self._sweeper.sweep(self._shelves, self._clock.now())
        self.evictions.update((category, cause) for _, category, cause in removed)
        ids = [entry_id for entry_id, _, _ in removed]
        while (selector := self._erasures.take_due(self._clock.monotonic())) is not None:
            ids += await self._erase(selector)
        return ids

    async def page(self, selector: Selector, *, after: int = 0, limit: int = 100) -> Page:
        """Return some entries that are meant and not gone."""
        means, now_s, most = meaning(selector), self._clock.now(), max(1, limit)
        rows = self._shelves.after(after, STEP_ROWS, selector.ids)
        last = rows[-1][0] if len(rows) == STEP_ROWS else None
        found: list[Entry] = []
        for row, entry in rows:
            if len(found) == most:
                last = row - 1
                break
            if means(entry) and now_s < entry.gone_s and not self._erasures.hide(entry):
                found.append(entry)
        return Page(entries=tuple(found), after=last)

    async def erase(self, selector: Selector, *, dry_run: bool = False, scrub: bool = True) -> list[str]:
        """Remove all entries that are meant; none is served from the moment of the call."""
        if not selector:
            return []
        if dry_run:
            return [entry_id async for ids in self._steps(selector) for entry_id in ids]
        self._fences.put_up_all()
        self._erasures.begin(selector)
        return await self._erase(selector)

    async def _erase(self, selector: Selector) -> list[str]:
        removed: list[str] = []
        try:
            async for ids in self._steps(selector):
                self._fences.put_up(ids)
                removed += [entry_id for entry_id in ids if self._shelves.delete(entry_id)]
        except BaseException:
            self._erasures.owe(selector, self._clock.monotonic())
            raise
        self._erasures.end(selector)
        return removed

    async def _steps(self, selector: Selector) -> AsyncIterator[list[str]]:
        """Yield the ids of what is meant, some at a time; others may run between steps."""
        means, row = meaning(selector), 0
        while rows := self._shelves.after(row, STEP_ROWS, selector.ids):
            row = rows[-1][0]
            yield [entry.id for _, entry in rows if means(entry)]
            await asyncio.sleep(0)

    async def scan(self, epoch: str) -> AsyncIterator[tuple[Partition, str, NDArray[np.float32]]]:
        """Yield each live entry's partition, id and vector, as of the first step."""
        now_s = self._clock.now()
        for entry in self._shelves:
            if entry.partition.epoch == epoch and entry.vector is not None and now_s < entry.gone_s:
                yield entry.partition, entry.id, entry.vector
