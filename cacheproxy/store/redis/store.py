"""Entries in Redis, shared by many proxies: the document read is the commit point, and the lease allows it.

What is there is known from the shards' logs (`Directory`), which this replica follows; what is not known there is a
miss, without asking. A document is read from the engine, or from memory while it is of the version that is known. All
of it only while this replica's lease holds (`shared.members`): what a purge removed that was acknowledged, or whose
laggards' leases have ended, is not served here.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

import structlog

from cacheproxy.errors import StoreUnavailable
from cacheproxy.store.caps import Caps
from cacheproxy.store.hot import HotEntries
from cacheproxy.store.redis.beside import Beside
from cacheproxy.store.redis.comparing import Comparing
from cacheproxy.store.redis.directory import Directory
from cacheproxy.store.redis.documents import Documents
from cacheproxy.store.redis.fences import SharedFences
from cacheproxy.store.redis.following import Following
from cacheproxy.store.redis.journal import PurgeJournal
from cacheproxy.store.redis.keeping import Keeping
from cacheproxy.store.redis.looking import Looking
from cacheproxy.store.redis.permit import Permit
from cacheproxy.store.redis.reading import Reading
from cacheproxy.store.redis.removing import Removing
from cacheproxy.store.redis.sweeping import Sweeping
from cacheproxy.store.redis.using import TELL_S, Using
from cacheproxy.store.sweeper import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from cacheproxy import settings
    from cacheproxy.model import Entry, Holding, Quota, Selector
    from cacheproxy.policy.evict import Cause
    from cacheproxy.ports import Clock, Page
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link
    from cacheproxy.store.redis.following import Listener, Told
    from cacheproxy.store.redis.looking import Found
    from cacheproxy.store.redis.permit import Lease

log = structlog.get_logger()


class RedisStore:
    """An EntryStore and EntryCatalogue over one prefix of an engine. `follow` and `resync` are for its logs' followers.

    Serves nothing while its lease does not hold: every call then raises StoreUnavailable at once.
    """

    quarantined = 0

    def __init__(
        self,
        link: Link,
        layout: Layout,
        lease: Lease,
        limits: settings.Store,
        replicas: settings.Replicas,
        clock: Clock,
        journal: Path,
        *,
        leads: Callable[[], bool],
        quotas: Callable[[], Mapping[str, Quota]] = plain,
    ) -> None:
        """`leads` tells whether this replica makes room for all; `journal` is the file of its purges."""
        caps = Caps(max_entries=limits.max_entries, max_bytes=limits.max_bytes)
        hot = HotEntries(limits.hot_bytes)
        self._clock = clock
        self._permit = Permit(lease, layout)
        self._beside = Beside()
        self._directory = Directory(layout.shards, layout.shard_of)
        self._documents = Documents(
            link,
            layout,
            replica=lease.replica,
            log_length=replicas.log_messages,
            most_bytes=8 * limits.max_entry_bytes,
        )
        self._following = Following(
            self._directory, SharedFences(_begun(clock)), hot, self._documents, clock, replica=lease.replica
        )
        self._journal = PurgeJournal(journal)
        self._removing = Removing(
            self._directory,
            self._following,
            self._documents,
            self._journal,
            clock,
            shards=layout.shards,
            replica=lease.replica,
            by_words=lambda selector: self._looking.with_words(selector, self._reading.read),
        )
        line = self._directory, self._documents, self._following, self._removing, hot, self._permit, clock
        self._reading = Reading(*line, spawn=self._beside.spawn)
        self._keeping = Keeping(*line, caps)
        self._looking = Looking(self._directory, self._documents, clock, self._reading.shown)
        self._comparing = Comparing(
            self._directory,
            self._following,
            self._documents,
            self._journal,
            self._permit,
            clock,
            shards=layout.shards,
            every_s=replicas.reconcile_s,
            leads=leads,
            removed=self._removing.purge,
        )
        self._sweeping = Sweeping(self._directory, self._documents, clock, caps, quotas, leads=leads)
        self._using = Using(self._directory, self._documents, self._permit)

    async def __aenter__(self) -> Self:
        """Open the journal, and begin what is done beside requests. Raises ConfigError where it cannot be used."""
        await self._journal.__aenter__()
        self._permit.open = True
        self._beside.again(self._following.make_findable, 0.0)
        self._beside.again(self._using.tell, TELL_S)
        self._beside.again(self._comparing.when_due, 0.0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop; the engine keeps everything."""
        self._permit.open = False
        await self._beside.close()
        await self._journal.__aexit__(*exc)

    # Of the logs

    async def follow(self, shard: int, messages: Sequence[Told]) -> None:
        """Apply messages of a shard's log, in their order."""
        await self._following.handle(shard, messages)

    async def resync(self, shard: int, reason: str) -> str:
        """Read again what a shard holds; return where in its log to go on. Raises StoreUnavailable."""
        at = await self._comparing.resync(shard, reason)
        self._reading.begin_again()
        return at

    async def reconcile(self) -> int:
        """Compare everything with the engine, repair what differs, and return how many entries that were.

        Raises StoreUnavailable.
        """
        return await self._comparing.reconcile()

    def listen(self, listener: Listener) -> None:
        """Tell of other replicas' entries from now on, and of what went since the opening."""
        self._following.listen(listener)

    @property
    def positions(self) -> Mapping[int, str]:
        """By shard, the last message that a removal asked for here made: who applied it has removed all of them."""
        return self._removing.positions

    @property
    def loaded(self) -> bool:
        """Whether every shard was read at least once."""
        return self._comparing.loaded

    # Figures

    @property
    def fence(self) -> int:
        """A number that every purge raises."""
        return self._following.fences.current

    @property
    def over_cap(self) -> bool:
        """Whether a sweep is due for size, and this replica is the one to sweep."""
        return self._sweeping.due

    @property
    def size_bytes(self) -> int:
        """Bytes of all entries, counted as a file's are."""
        return self._directory.tally.totals[1]

    @property
    def evictions(self) -> Mapping[tuple[str, Cause], int]:
        """How many entries sweeps of this replica removed, by category and cause."""
        return self._sweeping.evictions

    @property
    def corrupt_records(self) -> int:
        """Documents dropped because their checks failed."""
        return self._reading.corrupt

    @property
    def resyncs(self) -> Mapping[str, int]:
        """How often a shard was read again, by reason."""
        return self._comparing.resyncs

    @property
    def divergent(self) -> int:
        """Entries that differed at the last reconcile."""
        return self._comparing.divergent

    @property
    def foreign(self) -> int:
        """Values and messages that were ignored because no proxy of this version wrote them."""
        return self._documents.foreign + self._following.misread

    @property
    def unfindable(self) -> int:
        """Entries of others that are not in the index yet."""
        return self._following.unfindable

    def holdings(self) -> list[Holding]:
        """Return what each tenant holds of each category."""
        return self._directory.holdings()

    def __len__(self) -> int:
        """Count entries, those included that are gone and were not swept yet."""
        return len(self._directory)

    def health(self) -> str:
        """Return "", since answers of the backend always flow; `degraded` tells what is wrong."""
        return "" if self._permit.open else "the shared store is not open"

    def degraded(self) -> str:
        """Return "" while this replica serves what is kept, else why it does not."""
        return "" if self._permit.serving else "nothing kept is served: the shared store is away or being read"

    # Entries

    async def get(self, entry_id: str) -> Entry | None:
        """Return an entry that is not gone: from memory where it is of the version that is known."""
        began_s = self._clock.now()
        entry = await self._reading.get(entry_id)
        if entry is not None:
            self._using.note(entry_id, began_s)
        return entry

    def still_holds(self, entry: Entry, fence: int) -> bool:
        """Whether neither it nor the one whose answer it repeats was removed since, and the leases hold that say so."""
        return self._reading.still_holds(entry, fence)

    async def put(self, entry: Entry, fence: int) -> bool:
        """Keep an entry for all replicas; return once the engine has it. Its own settings say what a crash loses."""
        return await self._keeping.put(entry, fence)

    async def purge(self, entry_ids: Collection[str]) -> int:
        """Remove entries on all replicas, and refuse the fills of them that have begun.

        None is served here from the moment of the call, nor elsewhere once `positions` are applied there. When the
        engine is away (StoreUnavailable) what was asked for is written down, hidden here, and tried again.
        """
        self._permit.opened()
        self._using.forget(entry_ids)
        return await self._removing.purge(entry_ids)

    async def sweep(self) -> list[str]:
        """Remove at most SWEEP_LIMIT entries: those gone, and, where this replica makes room, what policy says."""
        self._permit.opened()
        reachable = self._permit.reachable
        if reachable:
            with contextlib.suppress(StoreUnavailable):
                await self._removing.retry()
        removed = await self._sweeping.sweep(reachable=reachable)
        self._following.swept(removed)
        return [*removed, *(await self._removing.retry_erasures() if reachable else ())]

    async def page(self, selector: Selector, *, after: int = 0, limit: int = 100) -> Page:
        """Return some entries that are meant and not gone. Cursors mean the same on every replica."""
        self._permit.all()
        return await self._looking.page(selector, after, limit)

    async def erase(self, selector: Selector, *, dry_run: bool = False, scrub: bool = True) -> list[str]:
        """Remove all entries that are meant: on every replica none is served before the first is removed.

        What an engine has written to its own files is not scrubbed. When it is away (StoreUnavailable), or when this
        call is cancelled, what is meant is hidden here, and a later sweep tries again.
        """
        self._permit.opened()
        if not selector:
            return []
        if dry_run:
            self._permit.all()
            return [meta.id for meta in await self._looking.with_words(selector, self._reading.shown)]
        return await self._removing.erase(selector)

    async def scan(self, epoch: str) -> AsyncIterator[Found]:
        """Yield each live entry's partition, id and vector; answers are not read. Raises StoreUnavailable."""
        self._permit.opened()
        async for found in self._looking.scan(epoch):
            yield found

    async def rows(self, epoch: str) -> AsyncIterator[Found]:
        """Yield the same for the index that listens, which is not told of these again; nothing where that fails."""
        try:
            async for found in self._looking.scan(epoch, self._following.found):
                yield found
        except StoreUnavailable as exc:
            log.warning("replica_vectors_late", reason=exc.message)


def _begun(clock: Clock) -> int:
    """Return a fence above those of runs before this one."""
    return int(clock.now() * 1000)
