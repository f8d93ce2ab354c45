"""Keeping an entry for all replicas: refused by the engine's own script where a purge came before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.errors import StoreUnavailable
from cacheproxy.store.codec import encode
from cacheproxy.store.meta import decode_meta, encode_meta

if TYPE_CHECKING:
    from cacheproxy.model import Entry
    from cacheproxy.ports import Clock
    from cacheproxy.store.caps import Caps
    from cacheproxy.store.hot import HotEntries
    from cacheproxy.store.redis.directory import Directory
    from cacheproxy.store.redis.documents import Documents
    from cacheproxy.store.redis.following import Following
    from cacheproxy.store.redis.permit import Permit
    from cacheproxy.store.redis.removing import Removing


class Keeping:
    """Puts of one replica."""

    def __init__(
        self,
        directory: Directory,
        documents: Documents,
        following: Following,
        removing: Removing,
        hot: HotEntries,
        permit: Permit,
        clock: Clock,
        caps: Caps,
    ) -> None:
        self._directory = directory
        self._documents = documents
        self._following = following
        self._removing = removing
        self._hot = hot
        self._permit = permit
        self._clock = clock
        self._caps = caps

    async def put(self, entry: Entry, fence: int) -> bool:
        """Return once the engine has it; False where its fill began before a purge of it. Raises StoreUnavailable."""
        self._permit.one(entry.id)
        # Taken before anything is waited for: the fence means something to these very data alone.
        data = self._permit.data(entry.id)
        if data is None or not self._following.fences.admits(entry.id, fence):
            return False
        if self._caps.full(*self._directory.tally.totals):
            raise StoreUnavailable("the shared store is too far above its caps; nothing is taken until a sweep")
        encoded = encode(entry)
        sealed, shard = encode_meta(encoded), self._documents.shard_of(entry.id)
        await self._removing.settled(entry.id)
        now_s, kept = self._clock.now(), encoded.entry
        self._following.putting.add(entry.id)
        raised = None
        try:
            raised = await self._documents.put(
                encoded,
                sealed,
                self._following.fences.generation(shard, fence),
                life_ms=int((kept.gone_s - now_s) * 1000),
                gone_ms=int(kept.gone_s * 1000),
                data=data,
            )
        finally:
            self._following.putting.discard(entry.id)
            known = self._directory.get(entry.id)
            if raised is None and known is not None:  # it may be there all the same: nobody else makes it findable
                self._following.find(known)
        if raised is None:
            return False
        self._hot.discard(entry.id)
        self._directory.put(decode_meta(sealed, entry.id, raised.ver), now_s)
        known = self._directory.get(entry.id)
        if known is not None and known.ver == raised.ver:
            self._hot.put(kept, encoded.footprint_bytes)
        return True
