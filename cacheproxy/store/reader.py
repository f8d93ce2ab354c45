"""Reads of a store file, in a thread of its own."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cacheproxy.errors import StoreUnavailable
from cacheproxy.store.codec import Decoded, RecordError
from cacheproxy.store.condition import unavailable
from cacheproxy.store.selection import choose, list_entries
from cacheproxy.store.table import load, read_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cacheproxy.model import Selector
    from cacheproxy.store.condition import Condition
    from cacheproxy.store.database import Database
    from cacheproxy.store.selection import Chosen, Listed
    from cacheproxy.store.table import VectorPage

T = TypeVar("T")

PAGE_ROWS = 512
"""Vectors read at once: about 3 ms, for which other reads wait."""


class Reader:
    """Reads entries and pages of vectors; whoever asks for an entry that is being read waits for that read.

    On the loop, before whoever waits goes on, `loaded` gets each entry that was not forgotten meanwhile, and `damaged`
    the id of each one whose record failed its checks.
    """

    def __init__(
        self,
        database: Database,
        condition: Condition,
        loaded: Callable[[Decoded], None],
        damaged: Callable[[str], None],
    ) -> None:
        self._database = database
        self._condition = condition
        self._loaded = loaded
        self._damaged = damaged
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cacheproxy-store-reader")
        self._reads: dict[str, asyncio.Future[Decoded | None]] = {}

    async def load(self, entry_id: str) -> Decoded | None:
        """Return an entry, or None when it is missing or damaged. Raises StoreUnavailable."""
        read = self._reads.get(entry_id)
        if read is None:
            read = self._run(partial(load, self._database.reader, entry_id))
            self._reads[entry_id] = read
            read.add_done_callback(partial(self._end_load, entry_id))
        try:
            return await asyncio.shield(read)
        except RecordError:
            return None

    async def page(self, epoch: str, after: int, now_s: float) -> VectorPage:
        """Return the next vectors of an epoch. Raises StoreUnavailable."""
        page = await self._run(partial(read_page, self._database.reader, epoch, after, now_s, PAGE_ROWS))
        for entry_id in page.damaged:
            self._damaged(entry_id)
        return page

    async def chosen(self, selector: Selector, after: int) -> Chosen:
        """Take one step through the ids of all rows that are meant. Raises StoreUnavailable."""
        chosen = await self._run(partial(choose, self._database.reader, selector, after))
        for entry_id in chosen.damaged:
            self._damaged(entry_id)
        return chosen

    async def listed(self, selector: Selector, after: int, now_s: float, limit: int) -> Listed:
        """Take one step through the entries that are meant and not gone. Raises StoreUnavailable."""
        listed = await self._run(partial(list_entries, self._database.reader, selector, after, now_s, limit))
        for entry_id in listed.damaged:
            self._damaged(entry_id)
        return listed

    def forget(self, entry_ids: Iterable[str]) -> None:
        """Do not hand to `loaded` what is being read of these: it was written since."""
        for entry_id in entry_ids:
            self._reads.pop(entry_id, None)

    def stop(self) -> Future[bool]:
        """Take no more; the result comes when all reads are done."""
        done = self._thread.submit(bool)
        self._thread.shutdown(wait=False)
        return done

    def _run(self, read: Callable[[], T]) -> asyncio.Future[T]:
        running = asyncio.get_running_loop().run_in_executor(self._thread, _translated, read, self._database)
        running.add_done_callback(self._end)
        return running

    def _end(self, read: asyncio.Future[T]) -> None:
        failure = None if read.cancelled() else read.exception()
        if failure is None:
            self._condition.report("read", None)
        elif isinstance(failure, StoreUnavailable) and not isinstance(failure, RecordError):
            self._condition.report("read", failure)

    def _end_load(self, entry_id: str, read: asyncio.Future[Decoded | None]) -> None:
        current = self._reads.get(entry_id) is read
        if current:
            del self._reads[entry_id]
        if read.cancelled():
            return
        if isinstance(read.exception(), RecordError):
            self._damaged(entry_id)
        elif read.exception() is None and current and (decoded := read.result()) is not None:
            self._loaded(decoded)


def _translated(read: Callable[[], T], database: Database) -> T:
    try:
        return read()
    except (sqlite3.Error, UnicodeError) as exc:
        raise unavailable(exc, database.path, "read") from exc
