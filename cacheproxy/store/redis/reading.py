"""Reading one entry: from the engine, or from memory while it is of the version that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cacheproxy.store.codec import LaterRecord, RecordError, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cacheproxy.model import Entry
    from cacheproxy.ports import Clock
    from cacheproxy.store.hot import HotEntries
    from cacheproxy.store.meta import Meta
    from cacheproxy.store.redis.directory import Directory
    from cacheproxy.store.redis.documents import Documents
    from cacheproxy.store.redis.following import Following
    from cacheproxy.store.redis.permit import Permit
    from cacheproxy.store.redis.removing import Removing

_LOOKS = 3

log = structlog.get_logger()


class Reading:
    """What is served of what is known. `corrupt` counts documents that could not be decoded."""

    def __init__(
        self,
        directory: Directory,
        documents: Documents,
        following: Following,
        removing: Removing,
        hot: HotEntries,
        permit: Permit,
        clock: Clock,
        *,
        spawn: Callable[[Coroutine[object, object, None]], None],
    ) -> None:
        """`spawn` begins what no reader waits for."""
        self.corrupt = 0
        self._directory = directory
        self._documents = documents
        self._following = following
        self._removing = removing
        self._hot = hot
        self._permit = permit
        self._clock = clock
        self._spawn = spawn
        self._ahead: dict[str, int] = {}

    async def get(self, entry_id: str) -> Entry | None:
        """Return an entry that is not gone. Raises StoreUnavailable."""
        self._permit.one(entry_id)
        for _ in range(_LOOKS):
            meta = self._directory.get(entry_id)
            if meta is None or self._removing.hides(entry_id) or self._clock.now() >= meta.gone_s:
                return None
            entry = None if self._is_ahead(meta) else self._hot.get(entry_id)
            if entry is None:
                entry = await self.read(meta)
                self._permit.one(entry_id)
                if self._directory.get(entry_id) is not meta:
                    continue  # a purge or another version came while it was on its way
            return None if entry is None or self._hides(entry) else entry
        return None

    def still_holds(self, entry: Entry, fence: int) -> bool:
        """Whether no replica removed it, or the one whose answer it repeats, since the fence was `fence`.

        The leases must hold that say so.
        """
        known = self._directory.get(entry.id)
        if known is None or known.created_s > entry.created_s:  # another one took its place
            return False
        for one in (entry.id, entry.alias_of):
            if one and not (self._permit.holds(one) and one in self._directory):
                return False
            if one and not self._following.fences.admits(one, fence):
                return False
        return not self._hides(entry)

    async def shown(self, meta: Meta) -> Entry | None:
        """Return a document's entry; None where it may not be shown. Raises StoreUnavailable."""
        if self._removing.hides(meta.id):
            return None
        entry = await self.read(meta)
        known = self._directory.get(meta.id)
        return None if entry is None or known is None or self._hides(entry) else entry

    async def read(self, meta: Meta) -> Entry | None:
        """Return what the engine has of an entry; None, and it is mended, where it cannot. Raises StoreUnavailable."""
        document = await self._documents.read(meta.id)
        if document is None or document.ver < meta.ver:
            self._repair(meta, missing=document is None)
            return None
        try:
            decoded = decode(document.record, document.vector, meta.id)
        except LaterRecord:  # of a replica that was upgraded before this one
            self._documents.foreign += 1
            return None
        except RecordError:
            self.corrupt += 1
            log.error("record_dropped", store="redis", entry=meta.id)  # noqa: TRY400 - it says it all
            self._repair(meta, missing=True)
            return None
        if document.ver > meta.ver:
            self._ahead[meta.id] = max(document.ver, self._ahead.get(meta.id, 0))
        elif self._directory.get(meta.id) is meta and not self._is_ahead(meta):
            self._hot.put(decoded.entry, decoded.footprint_bytes)
        return decoded.entry

    def begin_again(self) -> None:
        """Forget which versions are ahead of the log: all that the engine holds is known now, be it older."""
        self._ahead.clear()

    def _is_ahead(self, meta: Meta) -> bool:
        """Whether a later version was served here than the log has told of yet: then memory holds an older one."""
        if meta.ver >= self._ahead.get(meta.id, 0):
            self._ahead.pop(meta.id, None)
            return False
        return True

    def _hides(self, entry: Entry) -> bool:
        return self._removing.hides(entry.id) or self._removing.erasures.hide(entry)

    def _repair(self, meta: Meta, *, missing: bool) -> None:
        """Let go of an entry whose document is not there, and let the others know."""
        if not missing:
            self._following.look_again.set()  # the engine holds an older one: it went back in time
            return
        self._following.lose([(meta.id, meta.ver)])
        self._spawn(self._documents.evict(self._documents.shard_of(meta.id), [(meta.id, meta.ver)]))
