"""Sweeps: every replica lets go of what is gone; the one that was elected makes room for all."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cacheproxy.store.caps import Caps
from cacheproxy.store.sweeper import Sweeper, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cacheproxy.model import Quota
    from cacheproxy.policy.evict import Cause, Resident
    from cacheproxy.ports import Clock
    from cacheproxy.store.meta import Meta
    from cacheproxy.store.redis.directory import Directory
    from cacheproxy.store.redis.documents import Documents
    from cacheproxy.store.tally import Tally

_ENDLESS = Caps(max_entries=2**62, max_bytes=2**62)


class Sweeping:
    """Removes what must go. `evictions` counts what this replica removed, by category and cause."""

    def __init__(
        self,
        directory: Directory,
        documents: Documents,
        clock: Clock,
        caps: Caps,
        quotas: Callable[[], Mapping[str, Quota]],
        *,
        leads: Callable[[], bool],
    ) -> None:
        """`leads` tells whether this replica makes room for all."""
        self.evictions: Counter[tuple[str, Cause]] = Counter()
        self._directory = directory
        self._documents = documents
        self._clock = clock
        self._caps = caps
        self._leads = leads
        self._all = Sweeper(caps=caps, quotas=quotas)
        self._gone = Sweeper(caps=_ENDLESS, quotas=plain)

    @property
    def due(self) -> bool:
        """Whether a sweep is due for size, and this replica is the one to sweep."""
        return self._leads() and self._caps.over(*self._directory.tally.totals)

    async def sweep(self, *, reachable: bool) -> list[str]:
        """Remove a bounded number of entries; return their ids. Raises StoreUnavailable: then nothing went."""
        makes_room = reachable and self._leads()
        rows, now_s = _Rows(self._directory), self._clock.now()
        evicted = False
        try:
            removed = (self._all if makes_room else self._gone).sweep(rows, now_s)
            if makes_room:
                await self._tell(rows.taken)
                for meta in rows.taken.values():  # a message of before that comes late brings none of them back
                    self._directory.removed(meta.id, meta.ver)
            evicted = True
        finally:
            if not evicted:
                for meta in rows.taken.values():
                    self._directory.restore(meta, now_s)
        self.evictions.update((category, cause) for _, category, cause in removed)
        return [entry_id for entry_id, _, _ in removed]

    async def _tell(self, taken: Mapping[str, Meta]) -> None:
        by_shard: dict[int, list[tuple[str, int]]] = {}
        for meta in taken.values():
            by_shard.setdefault(self._documents.shard_of(meta.id), []).append((meta.id, meta.ver))
        for shard, entries in by_shard.items():
            await self._documents.evict(shard, entries)


class _Rows:
    """The directory, as a Sweeper reads and removes from it, and what it took."""

    def __init__(self, directory: Directory) -> None:
        self.taken: dict[str, Meta] = {}
        self._directory = directory
        self.gone = directory.gone
        self.least_recently_used = directory.least_recently_used

    @property
    def tally(self) -> Tally:
        return self._directory.tally

    def sample(self, category: str, tenant: str | None, limit: int, now_s: float) -> list[Resident]:
        return self._directory.sample(category, tenant, limit, now_s)

    def delete(self, entry_id: str) -> bool:
        meta = self._directory.get(entry_id)
        if meta is None or not self._directory.lose(entry_id, meta.ver):
            return False
        self.taken[entry_id] = meta
        return True
