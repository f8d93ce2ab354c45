"""What a replica makes of the changes of all: its directory, its fences, its memory and its index follow the log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, assert_never

import structlog

from cacheproxy.errors import StoreUnavailable
from cacheproxy.shared.lease import Position
from cacheproxy.store.codec import RecordError, decode_vector
from cacheproxy.store.redis.messages import Came, Evicted, Hidden, MessageError, Purged, Used, read_change

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Partition
    from cacheproxy.ports import Clock
    from cacheproxy.store.hot import HotEntries
    from cacheproxy.store.meta import Meta
    from cacheproxy.store.redis.directory import Directory
    from cacheproxy.store.redis.documents import Documents
    from cacheproxy.store.redis.fences import SharedFences
    from cacheproxy.store.redis.messages import Change

_AT_ONCE = 256
_MENDED = frozenset({b"put", b"evict", b"used"})
"""Kinds of messages that remove nothing for good: one that is not understood may be made good later."""

log = structlog.get_logger()


class Listener(Protocol):
    """Who finds entries by their vectors: told of what other replicas keep and remove."""

    def came(self, partition: Partition, entry_id: str, vector: NDArray[np.float32]) -> None:
        """Make an entry findable, in place of one of the same id."""
        ...

    def went(self, entry_ids: Collection[str]) -> None:
        """Forget entries; unknown ids are ignored."""
        ...


class Told(Protocol):
    """A message of a log (`shared.follower.Message`)."""

    @property
    def id(self) -> str:
        """Where it stands in the log."""
        ...

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """What it says."""
        ...


class Following:
    """Applies changes, one replica's own and all others', in the order of each log.

    `misread` counts messages that were not understood; `look_again` is set by those that a reconcile makes good.
    """

    def __init__(
        self,
        directory: Directory,
        fences: SharedFences,
        hot: HotEntries,
        documents: Documents,
        clock: Clock,
        *,
        replica: str,
    ) -> None:
        self.misread = 0
        self.look_again = asyncio.Event()
        self.fences = fences
        self.putting: set[str] = set()
        """Entries that this replica is keeping right now: whoever keeps them makes them findable."""
        self._directory = directory
        self._hot = hot
        self._documents = documents
        self._clock = clock
        self._replica = replica
        self._applied: dict[int, str] = {}
        self._moved = asyncio.Condition()
        self._listener: Listener | None = None
        self._unfindable: dict[str, None] = {}
        self._went: set[str] = set()
        self._due = asyncio.Event()

    # Messages

    async def handle(self, shard: int, messages: Sequence[Told]) -> None:
        """Apply messages of one log, in their order.

        Raises MessageError where one may have removed what is known here: then everything is to be read again.
        """
        for message in messages:
            try:
                self.apply(shard, read_change(message.fields))
            except MessageError as exc:
                self.misread += 1
                if message.fields.get(b"op") not in _MENDED:
                    raise
                self.look_again.set()
                log.warning("message_ignored", shard=shard, reason=exc.message)
        if messages:
            await self.moved(shard, messages[-1].id)

    def apply(self, shard: int, change: Change) -> None:
        """Apply one change; one that is known already changes nothing."""
        match change:
            case Came(meta=meta, by=by):
                self.came(meta, findable=by == self._replica and meta.id in self.putting)
            case Purged(ids=ids, ver=ver, generation=generation, by=by):
                if by != self._replica:
                    self.fences.purged(shard, generation, ids)
                self.lose((entry_id, ver) for entry_id in ids)
            case Evicted(ids=ids, vers=vers):
                self.lose(zip(ids, vers, strict=True))
            case Hidden(selector=selector, ver=ver, generation=generation, by=by):
                if by != self._replica:
                    self.fences.erased(shard, generation)
                self.forget(self._directory.hide(shard, selector, ver))
            case Used(uses=uses, by=by):
                if by != self._replica:
                    now_s = self._clock.now()
                    for entry_id, (count, last_s) in uses.items():
                        self._directory.use(entry_id, min(last_s, now_s), count)
            case _:
                assert_never(change)

    async def moved(self, shard: int, position: str) -> None:
        """Note up to where a log was applied."""
        self._applied[shard] = position
        async with self._moved:
            self._moved.notify_all()

    async def caught_up(self, positions: Mapping[int, str], timeout_s: float) -> None:
        """Wait until all up to these positions is applied here. Raises StoreUnavailable."""

        def reached() -> bool:
            return all(
                Position.read(self._applied.get(shard, "")) >= Position.read(position)
                for shard, position in positions.items()
            )

        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(reached)
        except TimeoutError as exc:
            raise StoreUnavailable(
                f"this replica is more than {timeout_s:.0f} s behind the log of the shared store; see GET "
                "/admin/v1/replicas and cacheproxy_replica_lag_seconds"
            ) from exc

    # What comes

    def came(self, meta: Meta, *, findable: bool = False) -> None:
        """Note an entry, unless as new a one is known: an older one in memory goes, and its vector is to be read."""
        if self._directory.put(meta, self._clock.now()):
            self._hot.discard(meta.id)
            if not findable:
                self.find(meta)

    # What goes

    def lose(self, gone: Iterable[tuple[str, int]]) -> list[str]:
        """Remember that entries are gone up to a version; return those that were there."""
        ids = [entry_id for entry_id, ver in gone if self._directory.removed(entry_id, ver)]
        self.forget(ids)
        return ids

    def forget(self, entry_ids: Collection[str]) -> None:
        """Hold nothing of entries in memory, and let nobody find them."""
        if not entry_ids:
            return
        for entry_id in entry_ids:
            self._hot.discard(entry_id)
            self._unfindable.pop(entry_id, None)
        if self._listener is None:
            self._went.update(entry_ids)
        else:
            self._listener.went(entry_ids)

    # What is to be found

    def listen(self, listener: Listener) -> None:
        """Tell of everything from now on, what went since the opening first."""
        self._listener = listener
        went, self._went = self._went, set()
        listener.went(went)
        self._due.set()

    def find(self, meta: Meta) -> None:
        """Have an entry's vector read, and made findable."""
        if meta.dim:
            self._unfindable[meta.id] = None
            self._due.set()

    def found(self, entry_id: str) -> None:
        """Note that an entry was made findable by somebody else."""
        self._unfindable.pop(entry_id, None)

    def swept(self, entry_ids: Collection[str]) -> None:
        """Hold nothing of entries that a sweep removed; whoever asked for it tells the index."""
        for entry_id in entry_ids:
            self._hot.discard(entry_id)
            self._unfindable.pop(entry_id, None)

    @property
    def unfindable(self) -> int:
        """Entries that are known and not in the index yet."""
        return len(self._unfindable)

    async def make_findable(self) -> None:
        """Wait for entries of others, and tell the listener of some. Raises StoreUnavailable."""
        await self._due.wait()
        if self._listener is None or not self._unfindable:
            self._due.clear()
            return
        by_shard: dict[int, list[Meta]] = {}
        for entry_id in list(self._unfindable)[:_AT_ONCE]:
            meta = self._directory.get(entry_id)
            if meta is None:
                self._unfindable.pop(entry_id, None)
            else:
                by_shard.setdefault(self._documents.shard_of(entry_id), []).append(meta)
        for shard, metas in by_shard.items():
            known = {meta.id: meta for meta in metas}
            async for entry_id, ver, blob in self._documents.vectors(shard, list(known)):
                meta = self._directory.get(entry_id)
                if meta is None or ver != meta.ver or meta is not known[entry_id]:
                    continue  # another message tells of it, or did
                try:
                    vector = decode_vector(blob, meta.partition, entry_id)
                except RecordError:
                    self._documents.foreign += 1
                else:
                    self._listener.came(meta.partition, entry_id, vector)
            for meta in metas:
                if self._directory.get(meta.id) in {meta, None}:
                    self._unfindable.pop(meta.id, None)
