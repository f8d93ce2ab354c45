"""Removal for good: by ids, or by what entries are. Nothing of it is served here from the moment of the call."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import Selector
from cacheproxy.shared.lease import Position
from cacheproxy.store.erasures import Erasures
from cacheproxy.store.redis.documents import AT_ONCE
from cacheproxy.store.redis.messages import encode_selector
from cacheproxy.store.tombstones import Tombstones

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from cacheproxy.ports import Clock
    from cacheproxy.store.meta import Meta
    from cacheproxy.store.redis.directory import Directory
    from cacheproxy.store.redis.documents import Documents, Raised
    from cacheproxy.store.redis.following import Following
    from cacheproxy.store.redis.journal import PurgeJournal

CATCH_UP_S = 2.0
MOST_IDS_TOLD = 20_000
"""Longest list of ids that is told to all as one; what is longer is purged piece by piece."""
_NONE_OF_THEM = Selector(before_s=0.0)

log = structlog.get_logger()


class Removing:
    """Purges and erasures of one replica. What fails is hidden here, written down, and `retry` tries it again.

    `positions` tells, by shard, the last message that this replica's removals made.
    """

    def __init__(
        self,
        directory: Directory,
        following: Following,
        documents: Documents,
        journal: PurgeJournal,
        clock: Clock,
        *,
        shards: int,
        replica: str,
        by_words: Callable[[Selector], Awaitable[list[Meta]]],
    ) -> None:
        """`by_words` reads documents to tell which a selector means."""
        self.erasures = Erasures()
        self.positions: dict[int, str] = {}
        self._directory = directory
        self._following = following
        self._documents = documents
        self._journal = journal
        self._clock = clock
        self._shards = shards
        self._replica = replica
        self._by_words = by_words
        self._tombstones = Tombstones()
        self._running: dict[str, asyncio.Future[None]] = {}

    def hides(self, entry_id: str) -> bool:
        """Whether an entry is being purged, or was and the engine does not know yet."""
        return entry_id in self._tombstones

    async def settled(self, entry_id: str) -> None:
        """Wait for a purge of this id that is under way; try again what is owed. Raises StoreUnavailable."""
        while entry_id in self._tombstones:
            running = self._running.get(entry_id)
            if running is None:
                await self.retry()
                if entry_id in self._tombstones and entry_id not in self._running:
                    raise StoreUnavailable(f"entry {entry_id} was purged, and that is neither done nor owed")
            else:
                await asyncio.wait([running])

    async def purge(self, entry_ids: Collection[str]) -> int:
        """Remove entries; return how many the engine had. Raises StoreUnavailable."""
        ids = tuple(dict.fromkeys(entry_ids))
        self._following.fences.put_up(ids)
        return await self._purge(ids)

    async def erase(self, selector: Selector) -> list[str]:
        """Remove what is meant, and refuse every fill that has begun. Raises StoreUnavailable."""
        self._following.fences.put_up_all()
        self.erasures.begin(selector)
        return await self._erase(selector)

    async def retry(self) -> None:
        """Try again to purge what failed. Raises StoreUnavailable."""
        if owed := self._tombstones.take_owed():
            await self._purge(tuple(owed))

    async def retry_erasures(self) -> list[str]:
        """Try again to erase what failed, where that is due; return the ids removed."""
        removed: list[str] = []
        try:
            while (selector := self.erasures.take_due(self._clock.monotonic())) is not None:
                removed += await self._erase(selector)
        except StoreUnavailable as exc:
            log.warning("store_erasure_owed", reason=exc.message)
        return removed

    async def _purge(self, ids: Sequence[str]) -> int:
        if not ids:
            return 0
        fence = self._following.fences.current
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running.update(dict.fromkeys(ids, done))
        by_shard: dict[int, list[str]] = {}
        for entry_id in ids:
            by_shard.setdefault(self._documents.shard_of(entry_id), []).append(entry_id)
        try:
            self._tombstones.bury(ids, fence)
            self._following.forget(ids)
            await self._note(ids, 0)
            counts = await asyncio.gather(*(self._of_shard(one, some, fence) for one, some in by_shard.items()))
        except BaseException:
            self._tombstones.owe(ids)
            raise
        finally:
            for entry_id in ids:
                if self._running.get(entry_id) is done:
                    del self._running[entry_id]
            done.set_result(None)
        return sum(counts)

    async def _of_shard(self, shard: int, ids: Sequence[str], fence: int) -> int:
        removed = 0
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            raised = await self._documents.purge(shard, some)
            self._tell(shard, raised, fence)
            self._following.lose((entry_id, raised.ver) for entry_id in some)
            self._tombstones.settle(some, fence)
            await self._note(some, raised.ver)
            removed += raised.removed
        return removed

    def _tell(self, shard: int, raised: Raised, fence: int) -> None:
        self._following.fences.done(shard, raised.generation, fence)
        # Replies to purges at the same time come in any order; who waits for the last one waits for all.
        self.positions[shard] = max(self.positions.get(shard, ""), raised.at, key=Position.read)

    async def _note(self, ids: Sequence[str], ver: int) -> None:
        """Write purges down, up to a version: before they are asked for, up to now as far as this clock tells."""
        now_s = self._clock.now()
        try:
            await self._journal.note(ids, ver or int(now_s * 1e6), now_s, done=bool(ver))
        except StoreUnavailable as exc:  # it is asked for nevertheless; only a failover could lose it now
            log.warning("purge_journal_failed", reason=exc.message)

    async def _erase(self, selector: Selector) -> list[str]:
        try:
            removed = await self._remove(selector)
        except BaseException:
            self.erasures.owe(selector, self._clock.monotonic())
            raise
        self.erasures.end(selector)
        return removed

    async def _remove(self, selector: Selector) -> list[str]:
        """Hide what is meant on every replica first: from then on its removal may take its time."""
        apart = bool(selector.text) or len(selector.ids) + len(selector.parents) > MOST_IDS_TOLD
        told = _NONE_OF_THEM if apart else selector
        # Its own: another replica that erases the same, and is done first, must not end what this one hides.
        name = hashlib.blake2b(self._replica.encode() + encode_selector(told), digest_size=16).hexdigest()
        fence, positions = self._following.fences.current, dict[int, str]()
        for shard in range(self._shards):
            raised = await self._documents.hide(shard, name, told)
            self._tell(shard, raised, fence)
            self._following.forget(self._directory.hide(shard, told, raised.ver))
            positions[shard] = raised.at
        await self._following.caught_up(positions, CATCH_UP_S)
        metas = await self._by_words(selector) if apart else self._directory.doomed(selector)
        ids = [meta.id for meta in sorted(metas, key=lambda meta: meta.ver)]
        await self._purge(ids)
        for shard in range(self._shards):
            await self._documents.unhide(shard, name)
        return ids
