"""Entries in Redis, shared by many proxies: the document read is the commit point, and the lease allows it.

What is there is known from the shards' logs (`Directory`), which this replica follows; what is not known there is a
miss, without asking. A document is read from the engine, or from memory while it is of the version that is known. All
of it only while this replica's lease holds (`shared.members`): what a purge removed that was acknowledged, or whose
laggards' leases have ended, is not served here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Protocol, Self

import msgspec
import structlog

from cacheproxy.errors import StoreUnavailable
from cacheproxy.store.caps import Caps
from cacheproxy.store.codec import RecordError, decode, encode
from cacheproxy.store.hot import HotEntries
from cacheproxy.store.meta import decode_meta, encode_meta
from cacheproxy.store.redis.comparing import Comparing
from cacheproxy.store.redis.directory import Directory
from cacheproxy.store.redis.documents import Documents
from cacheproxy.store.redis.fences import SharedFences
from cacheproxy.store.redis.following import Following
from cacheproxy.store.redis.journal import PurgeJournal
from cacheproxy.store.redis.looking import Looking
from cacheproxy.store.redis.removing import Removing
from cacheproxy.store.redis.sweeping import Sweeping
from cacheproxy.store.sweeper import plain
from cacheproxy.store.uses import Uses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
    from pathlib import Path

    from cacheproxy import settings
    from cacheproxy.model import Entry, Holding, Quota, Selector
    from cacheproxy.policy.evict import Cause
    from cacheproxy.ports import Clock, Page
    from cacheproxy.shared.layout import Layout, Log
    from cacheproxy.shared.lease import Data
    from cacheproxy.shared.link import Link
    from cacheproxy.store.meta import Meta
    from cacheproxy.store.redis.following import Listener, Told
    from cacheproxy.store.redis.looking import Found

USES_S = 5.0
"""How often the others are told what was used here."""
_MOST_USES = 4096
_LOOKS = 3
_RETRY_S = 1.0

log = structlog.get_logger()


class Lease(Protocol):
    """What lets this replica serve (`shared.members.Members`)."""

    @property
    def replica(self) -> str:
        """Its name, a new one at each start."""
        ...

    def serving(self, log: Log) -> bool:
        """Whether what a log is about may be served and changed now."""
        ...

    def data(self, log: Log) -> Data | None:
        """Return which data of the engine it was granted on; None where that is not known."""
        ...


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
        self.corrupt_records = 0
        self.resyncs: Counter[str] = Counter()
        self.divergent = 0
        """Entries that differed at the last reconcile."""
        self._lease = lease
        self._leads = leads
        self._clock = clock
        self._shards = layout.shards
        self._reconcile_s = replicas.reconcile_s
        self._caps = Caps(max_entries=limits.max_entries, max_bytes=limits.max_bytes)
        self._hot = HotEntries(limits.hot_bytes)
        self._directory = Directory(layout.shards, layout.shard_of)
        self._documents = Documents(
            link,
            layout,
            replica=lease.replica,
            log_length=replicas.log_messages,
            most_bytes=8 * limits.max_entry_bytes,
        )
        self._following = Following(
            self._directory, SharedFences(_begun(clock)), self._hot, self._documents, clock, replica=lease.replica
        )
        self._journal = PurgeJournal(journal)
        self._looking = Looking(self._directory, self._documents, clock, self._shown)
        self._removing = Removing(
            self._directory,
            self._following,
            self._documents,
            self._journal,
            clock,
            shards=layout.shards,
            replica=lease.replica,
            by_words=lambda selector: self._looking.with_words(selector, self._read),
        )
        self._comparing = Comparing(
            self._directory,
            self._following,
            self._documents,
            self._journal,
            clock,
            leads=leads,
            resyncs=self.resyncs,
            removed=self._removing.purge,
        )
        self._sweeping = Sweeping(self._directory, self._documents, clock, self._caps, quotas)
        self._uses: dict[str, Uses] = {}
        self._ahead: dict[str, int] = {}
        self._synced: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = False

    async def __aenter__(self) -> Self:
        """Open the journal, and begin what is done beside requests. Raises ConfigError where it cannot be used."""
        await self._journal.__aenter__()
        self._open = True
        self._spawn(self._again(self._following.make_findable, 0.0))
        self._spawn(self._again(self._tell_uses, USES_S))
        self._spawn(self._reconcile_forever())
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop; the engine keeps everything."""
        self._open = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._journal.__aexit__(*exc)

    # Of the logs

    async def follow(self, shard: int, messages: Sequence[Told]) -> None:
        """Apply messages of a shard's log, in their order."""
        await self._following.handle(shard, messages)

    async def resync(self, shard: int, reason: str) -> str:
        """Read again what a shard holds; return where in its log to go on. Raises StoreUnavailable."""
        at = await self._comparing.resync(shard, reason)
        self._ahead.clear()  # all that the engine holds is known now, be it older
        self._synced.add(shard)
        return at

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
        return len(self._synced) == self._shards

    # Figures

    @property
    def fence(self) -> int:
        """A number that every purge raises."""
        return self._following.fences.current

    @property
    def over_cap(self) -> bool:
        """Whether a sweep is due for size, and this replica is the one to sweep."""
        return self._leads() and self._caps.over(*self._directory.tally.totals)

    @property
    def size_bytes(self) -> int:
        """Bytes of all entries, counted as a file's are."""
        return self._directory.tally.totals[1]

    @property
    def evictions(self) -> Mapping[tuple[str, Cause], int]:
        """How many entries sweeps of this replica removed, by category and cause."""
        return self._sweeping.evictions

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
        return "" if self._open else "the shared store is not open"

    def degraded(self) -> str:
        """Return "" while this replica serves what is kept, else why it does not."""
        if all(self._lease.serving(shard) for shard in (*range(self._shards), "c")):
            return ""
        return "nothing kept is served: the shared store is away or being read"

    # Entries

    async def get(self, entry_id: str) -> Entry | None:
        """Return an entry that is not gone: from memory where it is of the version that is known."""
        self._may_serve(entry_id)
        for _ in range(_LOOKS):
            meta, now_s = self._directory.get(entry_id), self._clock.now()
            if meta is None or self._removing.hides(entry_id) or now_s >= meta.gone_s:
                return None
            entry = None if self._is_ahead(meta) else self._hot.get(entry_id)
            if entry is None:
                entry = await self._read(meta)
                self._may_serve(entry_id)
                if self._directory.get(entry_id) is not meta:
                    continue  # a purge or another version came while it was on its way
            if entry is None or self._removing.hides(entry_id) or self._removing.erasures.hide(entry):
                return None
            self._note_use(entry_id, now_s)
            return entry
        return None

    def still_holds(self, entry: Entry) -> bool:
        """Whether it was not removed since it was read, by any replica, and the lease holds that says so."""
        leased = self._open and self._lease.serving(self._documents.shard_of(entry.id)) and self._lease.serving("c")
        known = self._directory.get(entry.id)
        if not leased or known is None or known.created_s > entry.created_s:  # another one took its place
            return False
        return not (self._removing.hides(entry.id) or self._removing.erasures.hide(entry))

    async def put(self, entry: Entry, fence: int) -> bool:
        """Keep an entry for all replicas; return once the engine has it. Its own settings say what a crash loses."""
        self._may_serve(entry.id)
        # Taken before anything is waited for: the fence means something to these very data alone.
        data = self._lease.data(self._documents.shard_of(entry.id))
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

    async def purge(self, entry_ids: Collection[str]) -> int:
        """Remove entries on all replicas, and refuse the fills of them that have begun.

        None is served here from the moment of the call, nor elsewhere once `positions` are applied there. When the
        engine is away (StoreUnavailable) what was asked for is written down, hidden here, and tried again.
        """
        self._opened()
        for entry_id in entry_ids:
            self._uses.pop(entry_id, None)
        return await self._removing.purge(entry_ids)

    async def sweep(self) -> list[str]:
        """Remove at most SWEEP_LIMIT entries: those gone, and, where this replica makes room, what policy says."""
        self._opened()
        reachable = all(map(self._lease.serving, range(self._shards)))
        if reachable:
            with contextlib.suppress(StoreUnavailable):
                await self._removing.retry()
        removed = await self._sweeping.sweep(leads=self._leads(), reachable=reachable)
        for entry_id in removed:
            self._hot.discard(entry_id)
            self._following.found(entry_id)
        return [*removed, *(await self._removing.retry_erasures() if reachable else ())]

    async def page(self, selector: Selector, *, after: int = 0, limit: int = 100) -> Page:
        """Return some entries that are meant and not gone. Cursors mean the same on every replica."""
        self._may_serve_all()
        return await self._looking.page(selector, after, limit)

    async def erase(self, selector: Selector, *, dry_run: bool = False, scrub: bool = True) -> list[str]:
        """Remove all entries that are meant: on every replica none is served before the first is removed.

        What an engine has written to its own files is not scrubbed. When it is away (StoreUnavailable), or when this
        call is cancelled, what is meant is hidden here, and a later sweep tries again.
        """
        self._opened()
        if not selector:
            return []
        if dry_run:
            self._may_serve_all()
            return [meta.id for meta in await self._looking.with_words(selector, self._shown)]
        return await self._removing.erase(selector)

    async def scan(self, epoch: str) -> AsyncIterator[Found]:
        """Yield each live entry's partition, id and vector; answers are not read. Raises StoreUnavailable."""
        self._opened()
        async for found in self._looking.scan(epoch):
            yield found

    async def rows(self, epoch: str) -> AsyncIterator[Found]:
        """Yield the same for the index that listens, which is not told of these again; nothing where that fails."""
        try:
            async for found in self._looking.scan(epoch, self._following.found):
                yield found
        except StoreUnavailable as exc:
            log.warning("replica_vectors_late", reason=exc.message)

    async def _read(self, meta: Meta) -> Entry | None:
        document = await self._documents.read(meta.id)
        if document is None or document.ver < meta.ver:
            self._repair(meta, missing=document is None)
            return None
        try:
            decoded = decode(document.record, document.vector, meta.id)
        except RecordError:
            self.corrupt_records += 1
            log.error("record_dropped", store="redis", entry=meta.id)  # noqa: TRY400 - it says it all
            self._repair(meta, missing=True)
            return None
        if document.ver > meta.ver:
            self._ahead[meta.id] = max(document.ver, self._ahead.get(meta.id, 0))
        elif self._directory.get(meta.id) is meta and not self._is_ahead(meta):
            self._hot.put(decoded.entry, decoded.footprint_bytes)
        return decoded.entry

    def _is_ahead(self, meta: Meta) -> bool:
        """Whether a later version was served here than the log has told of yet: then memory holds an older one."""
        if meta.ver >= self._ahead.get(meta.id, 0):
            self._ahead.pop(meta.id, None)
            return False
        return True

    async def _shown(self, meta: Meta) -> Entry | None:
        if self._removing.hides(meta.id):
            return None
        entry = await self._read(meta)
        known = self._directory.get(meta.id)
        if entry is None or known is None or self._removing.hides(meta.id) or self._removing.erasures.hide(entry):
            return None
        return entry

    def _repair(self, meta: Meta, *, missing: bool) -> None:
        """Let go of an entry whose document is not there, and let the others know."""
        if not missing:
            self._following.look_again.set()  # the engine holds an older one: it went back in time
            return
        self._following.lose([(meta.id, meta.ver)])
        self._spawn(self._documents.evict(self._documents.shard_of(meta.id), [(meta.id, meta.ver)]))

    def _note_use(self, entry_id: str, now_s: float) -> None:
        self._directory.use(entry_id, now_s)
        before = self._uses.get(entry_id)
        if before is not None or len(self._uses) < _MOST_USES:
            self._uses[entry_id] = Uses(1 if before is None else before.count + 1, now_s)

    async def _tell_uses(self) -> None:
        uses, self._uses = self._uses, {}
        by_shard: dict[int, dict[str, tuple[int, float]]] = {}
        for entry_id, used in uses.items():
            shard = self._documents.shard_of(entry_id)
            if self._lease.serving(shard):  # else nobody is told: it is only how often
                by_shard.setdefault(shard, {})[entry_id] = used.count, used.last_s
        for shard, told in by_shard.items():
            await self._documents.tell_used(shard, msgspec.msgpack.encode(told))

    async def reconcile(self) -> int:
        """Compare everything with the engine, repair what differs, and return how many entries that were.

        Raises StoreUnavailable.
        """
        self._following.look_again.clear()
        self._may_serve_all()
        self.divergent = sum([await self._comparing.reconcile(shard) for shard in range(self._shards)])
        if self.divergent:
            log.warning("replica_diverged", entries=self.divergent)
        return self.divergent

    async def _reconcile_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._following.look_again.wait(), self._reconcile_s)
                await asyncio.sleep(_RETRY_S)  # many messages may ask for the same
            with contextlib.suppress(StoreUnavailable):
                await self.reconcile()

    async def _again(self, work: Callable[[], Coroutine[object, object, None]], pause_s: float) -> None:
        while True:
            try:
                await work()
            except StoreUnavailable as exc:
                log.debug("replica_work_failed", reason=exc.message)
                await asyncio.sleep(_RETRY_S)
            except Exception:  # a border: the store goes on without this piece of work
                log.exception("background_failed", work="replica")
                await asyncio.sleep(_RETRY_S)
            await asyncio.sleep(pause_s)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, StoreUnavailable):
            log.error("task_failed", exc_info=error)

    def _opened(self) -> None:
        if not self._open:
            raise StoreUnavailable("the shared store is not open")

    def _may_serve(self, entry_id: str) -> None:
        self._opened()
        if not (self._lease.serving(self._documents.shard_of(entry_id)) and self._lease.serving("c")):
            raise StoreUnavailable("this replica has no lease: the shared store is away, or being read again")

    def _may_serve_all(self) -> None:
        self._opened()
        if self.degraded():
            raise StoreUnavailable("this replica has no lease: the shared store is away, or being read again")


def _begun(clock: Clock) -> int:
    """Return a fence above those of runs before this one."""
    return int(clock.now() * 1000)
