"""The directory: what a replica knows to be there, and of what version. It only ever goes forward.

Messages may come twice, late, or before the reply to the call that caused them: what is older than what is known, or
than a removal that is known, changes nothing. Only a re-sync, which has read the engine, sets anything back.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from cacheproxy.store.fences import MOST_IDS
from cacheproxy.store.selection import meaning
from cacheproxy.store.shelves import Shelves

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from cacheproxy.model import Entry, Holding, Selector
    from cacheproxy.policy.evict import Resident
    from cacheproxy.store.meta import Meta
    from cacheproxy.store.tally import Tally

MOST_HIDES = 256


class Directory:
    """Metas of all shards; `shard_of` tells an id's. Those that were hidden and are not removed yet are `doomed`."""

    def __init__(self, shards: int, shard_of: Callable[[str], int], *, most_removed: int = MOST_IDS) -> None:
        self._shard_of = shard_of
        self._shelves: Shelves[Meta] = Shelves()
        self._live: list[dict[str, Meta]] = [{} for _ in range(shards)]
        self._doomed: list[dict[str, Meta]] = [{} for _ in range(shards)]
        self._removed: OrderedDict[str, int] = OrderedDict()
        self._most_removed = most_removed
        self._forgotten: list[int] = [0] * shards
        self._hides: list[list[tuple[int, Callable[[Entry | Meta], bool], Selector]]] = [[] for _ in range(shards)]

    @property
    def tally(self) -> Tally:
        """What is held, by whom."""
        return self._shelves.tally

    def holdings(self) -> list[Holding]:
        """Return what each tenant holds of each category."""
        return self._shelves.tally.holdings()

    def __len__(self) -> int:
        return len(self._shelves)

    def __contains__(self, entry_id: str) -> bool:
        return self.get(entry_id) is not None

    def get(self, entry_id: str) -> Meta | None:
        """Return what is known of an entry that is there."""
        return self._live[self._shard_of(entry_id)].get(entry_id)

    def of_shard(self, shard: int) -> dict[str, int]:
        """Return the versions of a shard's entries, as of now, the doomed ones included."""
        both = (self._live[shard], self._doomed[shard])
        return {entry_id: meta.ver for metas in both for entry_id, meta in metas.items()}

    def version(self, entry_id: str) -> int | None:
        """Return the version of an entry, be it doomed; None where it is not known."""
        shard = self._shard_of(entry_id)
        meta = self._live[shard].get(entry_id) or self._doomed[shard].get(entry_id)
        return None if meta is None else meta.ver

    def after(self, row: int, limit: int, ids: Collection[str] = ()) -> list[tuple[int, Meta]]:
        """Return the next `limit` entries after a row, with `ids` of these, oldest first; a row is a version."""
        return self._shelves.after(row, limit, ids)

    def __iter__(self) -> Iterator[Meta]:
        """Yield the entries as of the first step, in no order."""
        return iter([meta for live in self._live for meta in live.values()])

    # What messages say

    def put(self, meta: Meta, now_s: float) -> bool:
        """Note an entry; False where as new a one, or its removal, is known."""
        shard = self._shard_of(meta.id)
        known = self._live[shard].get(meta.id) or self._doomed[shard].get(meta.id)
        if known is not None and known.ver >= meta.ver:
            return False
        if meta.ver <= self._removed.get(meta.id, 0 if known is not None else self._forgotten[shard]):
            return False
        if self._hidden(shard, meta):
            self._doom(shard, meta)
            return False
        self._keep(shard, meta, now_s)
        return True

    def removed(self, entry_id: str, ver: int) -> bool:
        """Note that an entry is gone up to this version; return whether it was there."""
        if ver > self._removed.get(entry_id, 0):
            self._removed[entry_id] = ver
            self._removed.move_to_end(entry_id)
            while len(self._removed) > self._most_removed:
                old, forgotten = self._removed.popitem(last=False)
                where = self._shard_of(old)
                self._forgotten[where] = max(self._forgotten[where], forgotten)
        return self.lose(entry_id, ver)

    def lose(self, entry_id: str, ver: int) -> bool:
        """Forget an entry of no later version, without remembering that; return whether it was there."""
        shard = self._shard_of(entry_id)
        doomed, live = self._doomed[shard].get(entry_id), self._live[shard].get(entry_id)
        if doomed is not None and doomed.ver <= ver:
            del self._doomed[shard][entry_id]
        if live is None or live.ver > ver:
            return False
        del self._live[shard][entry_id]
        self._shelves.delete(entry_id)
        return True

    def hide(self, shard: int, selector: Selector, ver: int) -> list[str]:
        """Doom what is meant, up to this version, and what of it is still to be heard of; return what was there."""
        means = meaning(selector)
        hides = self._hides[shard]
        if all(known != ver for known, _, _ in hides):
            hides.append((ver, means, selector))
            del hides[:-MOST_HIDES]
        found = [meta for meta in self._live[shard].values() if meta.ver <= ver and means(meta)]
        for meta in found:
            self._doom(shard, meta)
        return [meta.id for meta in found]

    def use(self, entry_id: str, used_s: float, count: int = 1) -> None:
        """Note uses of an entry, if it is there."""
        if entry_id in self:
            self._shelves.use(entry_id, used_s, count)

    # What a re-sync found

    def was_removed(self, entry_id: str, ver: int) -> bool:
        """Whether it is remembered that an entry of this version was removed for good."""
        return ver <= self._removed.get(entry_id, 0)

    def begin_again(self, shard: int) -> None:
        """Forget which removals are not remembered one by one: what is there was read anew."""
        self._forgotten[shard] = 0

    # What is to go

    def doomed(self, selector: Selector | None = None) -> list[Meta]:
        """Return what is hidden and not removed yet: all of it, or what is meant."""
        means = None if selector is None else meaning(selector)
        return [meta for doomed in self._doomed for meta in doomed.values() if means is None or means(meta)]

    def gone(self, now_s: float, limit: int) -> list[tuple[str, str]]:
        """Return id and category of those that nobody may be served from any more."""
        return self._shelves.gone(now_s, limit)

    def least_recently_used(self, limit: int) -> list[tuple[str, str]]:
        """Return id and category, the longest unused first."""
        return self._shelves.least_recently_used(limit)

    def sample(self, category: str, tenant: str | None, limit: int, now_s: float) -> list[Resident]:
        """Return the longest unused of a category, or of one tenant of it."""
        return self._shelves.sample(category, tenant, limit, now_s)

    def restore(self, meta: Meta, now_s: float) -> None:
        """Note again what was taken out in vain, unless it was replaced, removed or hidden meanwhile."""
        if self.version(meta.id) is not None or self.was_removed(meta.id, meta.ver):
            return
        shard = self._shard_of(meta.id)
        if self._hidden(shard, meta):
            self._doom(shard, meta)
        else:
            self._keep(shard, meta, now_s)

    def _hidden(self, shard: int, meta: Meta) -> bool:
        return any(meta.ver <= ver and means(meta) for ver, means, _ in self._hides[shard])

    def _keep(self, shard: int, meta: Meta, now_s: float) -> None:
        self._doomed[shard].pop(meta.id, None)
        self._live[shard][meta.id] = meta
        self._shelves.put(meta, meta.size_bytes, now_s, row=meta.ver)

    def _doom(self, shard: int, meta: Meta) -> None:
        if self._live[shard].pop(meta.id, None) is not None:
            self._shelves.delete(meta.id)
        self._doomed[shard][meta.id] = meta
