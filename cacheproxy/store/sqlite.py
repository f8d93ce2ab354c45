"""Entries in a SQLite file that one process owns.

A put returns once its transaction is committed (WAL, synchronous NORMAL): the end of the process, however it comes,
loses nothing; a loss of power may lose the last commits. One thread writes, one reads; what was used recently is served
from memory without leaving the event loop, and since nobody else writes the file, memory and file agree.
"""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Self

import structlog

from cacheproxy.errors import StoreUnavailable
from cacheproxy.ports import Page
from cacheproxy.store.caps import Caps
from cacheproxy.store.codec import Decoded, encode
from cacheproxy.store.condition import Condition
from cacheproxy.store.database import Database
from cacheproxy.store.erasures import Erasures
from cacheproxy.store.fences import Fences
from cacheproxy.store.group_commit import GroupCommit
from cacheproxy.store.hot import HotEntries
from cacheproxy.store.reader import Reader
from cacheproxy.store.sweeper import Sweeper, plain
from cacheproxy.store.tombstones import Tombstones
from cacheproxy.store.uses import Uses
from cacheproxy.store.writer import Discard, Job, MarkUsed, Outcome, Purge, Put, Scrub, Sweep, Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from cacheproxy import settings
    from cacheproxy.model import Entry, Holding, Quota, Selector
    from cacheproxy.policy.evict import Cause
    from cacheproxy.ports import Clock
    from cacheproxy.store.table import Found

PURGE_JOB_IDS = 256
USED_PENDING = 4096
"""How many uses are noted in memory before they are written, all at once."""

_log = structlog.get_logger()


class SqliteStore:
    """An EntryStore in one file, used as `async with`. It serves only between entering and leaving.

    `corrupt_records` counts records dropped because their checks failed, `quarantined` damaged files moved aside at
    opening. `quotas` are asked for at each sweep, in the writer's thread. `factory` makes the connections.
    """

    def __init__(
        self,
        path: Path,
        limits: settings.Store,
        clock: Clock,
        *,
        quotas: Callable[[], Mapping[str, Quota]] = plain,
        factory: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> None:
        self.corrupt_records = 0
        self.quarantined = 0
        self._path = path
        self._clock = clock
        self._caps = Caps(max_entries=limits.max_entries, max_bytes=limits.max_bytes)
        self._sweeper = Sweeper(caps=self._caps, quotas=quotas)
        self._open_file = partial(
            Database,
            path,
            busy_timeout_ms=limits.busy_timeout_ms,
            factory=factory,
            most_entries=limits.max_entries,
        )
        self._condition = Condition(path)
        self._hot = HotEntries(limits.hot_bytes)
        self._tombstones = Tombstones()
        self._erasures = Erasures()
        self._uses: dict[str, Uses] = {}
        self._fences = Fences()
        self._database: Database | None = None
        self._reader: Reader
        self._writer: Writer
        self._writer_thread: ThreadPoolExecutor
        self._queue: GroupCommit

    async def __aenter__(self) -> Self:
        """Open the file, off the loop. Raises ConfigError and StoreUnavailable as `Database` does."""
        self._writer_thread = ThreadPoolExecutor(1, thread_name_prefix="cacheproxy-store-writer")
        opening = self._writer_thread.submit(self._open_file, now_s=self._clock.now())
        try:
            database = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_close_unwanted)  # a cancelled opening may still succeed
            self._writer_thread.shutdown(wait=False)
            raise
        self._reader = Reader(database, self._condition, self._end_load, self._drop_damaged)
        self._writer = Writer(database, self._sweeper)
        self._queue = GroupCommit(self._writer_thread, self._writer.commit, self._end_write)
        self._fences = Fences(database.fence)
        self._erasures = Erasures(unscrubbed=database.unscrubbed)
        self.quarantined += database.quarantined
        self.corrupt_records += database.damaged
        self._database = database
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Finish what was queued, fold the log into the file and let another process in."""
        database = self._opened()
        self._flush_uses()
        self._database = None
        self._hot.clear()
        try:
            await self._queue.drain()
        finally:
            self._queue.abandon()
            # In the writer's thread, after what it was given before; done to its end also when this call is cancelled.
            closing = self._writer_thread.submit(
                _close, database, self._reader.stop(), clean=not self._condition.damaged
            )
            self._writer_thread.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))

    @property
    def fence(self) -> int:
        """A number that every purge raises, also over restarts."""
        return self._fences.current

    @property
    def over_cap(self) -> bool:
        """Whether a sweep is due for size."""
        return self._caps.over(*self._writer.totals)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file in use."""
        return self._writer.totals[1]

    @property
    def evictions(self) -> Mapping[tuple[str, Cause], int]:
        """How many entries sweeps removed since the store was opened, by category and cause."""
        return self._writer.evictions

    def holdings(self) -> list[Holding]:
        """Return what each tenant holds of each category."""
        return self._opened().tally.holdings()

    def __len__(self) -> int:
        """Count entries, those included that are gone and were not swept yet."""
        return self._writer.totals[0]

    def health(self) -> str:
        """Return "" when reads and writes work, else what is wrong."""
        return str(self._condition) if self._database else f"{self._path.name}: not open"

    async def get(self, entry_id: str) -> Entry | None:
        """Return an entry that is not gone: from memory without leaving the loop, or from the file if it is there."""
        entry = self._hot.get(entry_id)
        if entry is None and entry_id in self._opened().known:
            entry = await self._read(entry_id)
        if entry is None or self._erasures.hide(entry):
            return None
        now_s = self._clock.now()
        if now_s >= entry.gone_s:
            self._hot.discard(entry_id)
            return None
        before = self._uses.get(entry_id)
        self._uses[entry_id] = Uses(1 if before is None else before.count + 1, now_s)
        if len(self._uses) >= USED_PENDING:
            self._flush_uses()
        return entry

    def still_holds(self, entry: Entry, fence: int) -> bool:
        """Whether no removal of it, or of the one whose answer it repeats, has begun since the fence was `fence`."""
        admitted = all(self._fences.admits(one, fence) for one in (entry.id, entry.alias_of) if one)
        return admitted and not self._erasures.hide(entry)

    async def put(self, entry: Entry, fence: int) -> bool:
        """Keep an entry; return once it is committed. The entry and its body are the store's from here on."""
        database = self._opened()
        if not self._fences.admits(entry.id, fence):
            return False
        if self._caps.full(*self._writer.totals):
            raise StoreUnavailable(f"{self._path.name}: too far above its caps; nothing is taken until a sweep")
        if self._queue.full:
            raise StoreUnavailable(f"{self._path.name}: writes are too far behind; nothing is taken for a while")
        job = Put(encoded=encode(entry), fence=fence, now_s=self._clock.now())
        self._retry_purges()
        database.known.add(entry.id)
        outcome = await self._queue.submit(job)
        if isinstance(outcome, StoreUnavailable):
            raise outcome
        return outcome is not None

    async def purge(self, entry_ids: Collection[str]) -> int:
        """Remove entries and refuse the fills of them that have begun; none is served from the moment of the call.

        When the file cannot be written (StoreUnavailable) that still holds, and each later write tries again to remove.
        """
        self._opened()
        ids = tuple(dict.fromkeys(entry_ids))
        return len(await self._purge(ids))

    async def sweep(self) -> list[str]:
        """Remove at most `SWEEP_LIMIT` entries: those gone first, then, above the caps, what policy says is to go."""
        self._opened()
        self._retry_purges()
        uses, self._uses = self._uses, {}
        outcome = await self._queue.submit(Sweep(now_s=self._clock.now(), uses=uses))
        return [*_removed(outcome), *await self._retry_erasures()]

    async def scan(self, epoch: str) -> AsyncIterator[Found]:
        """Yield each live entry's partition, id and vector; answers are not read. Raises StoreUnavailable."""
        after = -1
        while True:
            self._opened()
            page = await self._reader.page(epoch, after, self._clock.now())
            for found in page.found:
                if found[1] not in self._tombstones:
                    yield found
            if page.last == after:
                return
            after = page.last

    async def page(self, selector: Selector, *, after: int = 0, limit: int = 100) -> Page:
        """Return some entries that are meant and not gone; read beside writes, a step at a time."""
        self._opened()
        fence = self.fence
        listed = await self._reader.listed(selector, after, self._clock.now(), limit)
        entries = (entry for entry in listed.entries if self._still_there(entry, fence))
        return Page(entries=tuple(entries), after=listed.last)

    async def erase(self, selector: Selector, *, dry_run: bool = False, scrub: bool = True) -> list[str]:
        """Remove all entries that are meant; none is served from the moment of the call. `scrub` rewrites the file.

        When the file cannot be written (StoreUnavailable), or when this call is cancelled, that still holds, and a
        later sweep tries again.
        """
        self._opened()
        if not selector:
            return []
        if dry_run:
            return await self._each_step(selector, _nothing)
        self._fences.put_up_all()
        self._queue.withdraw_puts()
        self._erasures.begin(selector)
        removed = await self._erase(selector, scrub=scrub)
        if scrub:
            await self._scrub()
        return removed

    async def _erase(self, selector: Selector, *, scrub: bool = True) -> list[str]:
        try:
            # Everything that was handed to the writer before is in the file once this is.
            _removed(await self._queue.submit(Purge(entry_ids=(), fence=self.fence, scrubbed=scrub)))
            self._erasures.unscrubbed |= scrub
            removed = await self._each_step(selector, self._purge)
        except BaseException:
            self._erasures.owe(selector, self._clock.monotonic())
            raise
        self._erasures.end(selector)
        return removed

    async def _each_step(self, selector: Selector, act: Callable[[list[str]], Awaitable[object]]) -> list[str]:
        """Return the ids of all rows that are meant, after calling `act` with those of each step."""
        ids: list[str] = []
        after: int | None = 0
        while after is not None:
            self._opened()
            chosen = await self._reader.chosen(selector, after)
            await act(chosen.ids)
            ids += chosen.ids
            after = chosen.last
        return ids

    async def _scrub(self) -> None:
        self._erasures.tried(self._clock.monotonic())
        _removed(await self._queue.submit(Scrub()))
        self._erasures.unscrubbed = False

    async def _retry_erasures(self) -> list[str]:
        removed: list[str] = []
        now_s = self._clock.monotonic()
        try:
            while (selector := self._erasures.take_due(now_s)) is not None:
                removed += await self._erase(selector)
            if self._erasures.scrub_due(now_s):
                await self._scrub()
        except StoreUnavailable as exc:
            _log.warning("store_erasure_owed", file=str(self._path), reason=exc.message)
        return removed

    def _still_there(self, entry: Entry, fence: int) -> bool:
        """Whether an entry that was read since the fence was `fence` was not purged meanwhile."""
        return (
            entry.id not in self._tombstones and self._fences.admits(entry.id, fence) and not self._erasures.hide(entry)
        )

    async def _purge(self, ids: Sequence[str]) -> list[str]:
        self._fences.put_up(ids)
        self._queue.withdraw_puts(ids)
        self._retry_purges()
        self._forget(ids)
        self._tombstones.bury(ids, self.fence)
        outcomes = await asyncio.gather(*self._submit_purges(ids))
        return [entry_id for outcome in outcomes for entry_id in _removed(outcome)]

    async def _read(self, entry_id: str) -> Entry | None:
        self._opened()
        while entry_id not in self._tombstones:
            fence = self.fence
            decoded = await self._reader.load(entry_id)
            if self._fences.admits(entry_id, fence):  # else the read may have begun before the purge and ended after it
                return None if decoded is None else decoded.entry
        return None

    def _end_load(self, decoded: Decoded) -> None:
        self._hot.put(decoded.entry, decoded.footprint_bytes)

    def _end_write(self, job: Job, outcome: Outcome) -> None:
        if isinstance(job, Scrub):  # the store serves as well without: whoever erases is told
            return
        if isinstance(outcome, StoreUnavailable):
            self._condition.report("write", outcome)
            if isinstance(job, Purge):
                self._tombstones.owe(job.entry_ids)
            return
        self._condition.report("write", None)
        self._forget(outcome)
        if isinstance(job, Purge):
            self._forget(job.entry_ids)
            self._tombstones.settle(job.entry_ids, job.fence)
        elif isinstance(job, Put):
            entry = job.encoded.entry
            self._forget((entry.id,))
            self._tombstones.settle((entry.id,), job.fence)
            if entry.id not in self._tombstones:  # else a purge waits behind this put
                self._hot.put(entry, job.encoded.footprint_bytes)

    def _forget(self, entry_ids: Sequence[str]) -> None:
        self._reader.forget(entry_ids)
        for entry_id in entry_ids:
            self._hot.discard(entry_id)
            self._uses.pop(entry_id, None)

    def _drop_damaged(self, entry_id: str) -> None:
        self.corrupt_records += 1
        _log.error("record_dropped", file=str(self._path), entry=entry_id)
        if self._database is not None:
            self._queue.submit(Discard(entry_id=entry_id))

    def _flush_uses(self) -> None:
        uses, self._uses = self._uses, {}
        if uses and self._database is not None:
            self._queue.submit(MarkUsed(uses=uses))

    def _retry_purges(self) -> None:
        if owed := self._tombstones.take_owed():
            self._submit_purges(owed)

    def _submit_purges(self, entry_ids: Sequence[str]) -> Iterable[asyncio.Future[Outcome | None]]:
        starts = range(0, max(1, len(entry_ids)), PURGE_JOB_IDS)
        return [
            self._queue.submit(Purge(entry_ids=tuple(entry_ids[start : start + PURGE_JOB_IDS]), fence=self.fence))
            for start in starts
        ]

    def _opened(self) -> Database:
        if self._database is None:
            raise StoreUnavailable(f"{self._path.name}: not open")
        return self._database


async def _nothing(ids: Sequence[str]) -> None:
    """Leave them."""


def _removed(outcome: Outcome | None) -> tuple[str, ...]:
    if isinstance(outcome, StoreUnavailable):
        raise outcome
    return outcome or ()


def _close(database: Database, reads_done: Future[bool], *, clean: bool) -> None:
    reads_done.result()
    database.close(clean=clean)


def _close_unwanted(opening: Future[Database]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close(clean=True)
