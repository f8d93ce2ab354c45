"""What is done to a store file, many jobs to a transaction. Runs in the writer thread only."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from cacheproxy.errors import StoreUnavailable
from cacheproxy.store.condition import primary_code, unavailable
from cacheproxy.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cacheproxy.policy.evict import Cause
    from cacheproxy.store.codec import Encoded
    from cacheproxy.store.database import Database
    from cacheproxy.store.sweeper import Sweeper
    from cacheproxy.store.uses import Uses


_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Put:
    """Keep an entry of a fill that began under `fence`."""

    encoded: Encoded
    fence: int
    now_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Purge:
    """Remove entries and keep the fence that this purge raised."""

    entry_ids: tuple[str, ...]
    fence: int
    scrubbed: bool = False
    """Whether a Scrub follows: noted in the file, should this process end before."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """Remove what is gone, then, above the caps, what policy says is to go."""

    now_s: float
    uses: Mapping[str, Uses]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MarkUsed:
    """Note how entries were used."""

    uses: Mapping[str, Uses]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Discard:
    """Remove an entry whose record was found damaged, unless it was replaced."""

    entry_id: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scrub:
    """Leave nothing of what was removed in free parts of the file."""


Job = Put | Purge | Sweep | MarkUsed | Discard | Scrub
Outcome = tuple[str, ...] | StoreUnavailable
"""The ids that a job removed, or why it was not done."""


class Writer:
    """Applies jobs in order, all in one transaction; when that fails, each in its own.

    On a full disk removals get the room of the ballast, and nothing is put until it could be given back.
    """

    def __init__(self, database: Database, sweeper: Sweeper) -> None:
        self._database = database
        self._connection = database.writer
        self._path = database.path
        self._sweeper = sweeper
        self._table = Table(database.writer, database.tally)
        self._evicted: Counter[tuple[str, Cause]] = Counter()
        self.totals = database.tally.totals
        """Entries and bytes as of the last commit; read from other threads."""
        self.evictions: Counter[tuple[str, Cause]] = Counter()
        """How many entries sweeps removed, by category and cause, as of the last commit; read from other threads."""

    def commit(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Return each job's outcome once what was done is committed."""
        self._database.ballast.restore()
        outcomes = iter(self._commit([job for job in jobs if not isinstance(job, Scrub)]))
        scrubbed = self._scrub() if any(isinstance(job, Scrub) for job in jobs) else ()
        return [scrubbed if isinstance(job, Scrub) else next(outcomes) for job in jobs]

    def _commit(self, jobs: Sequence[Job]) -> list[Outcome]:
        if len(jobs) > 1 and not self._database.ballast.released:
            with contextlib.suppress(sqlite3.Error, UnicodeError):
                return self._transact(jobs)
        return [self._alone(job) for job in jobs]

    def _alone(self, job: Job) -> Outcome:
        if isinstance(job, Put) and self._database.ballast.released:
            return StoreUnavailable(f"{self._path.name}: the disk is full, its last room is for removals: make room")
        try:
            try:
                return self._transact([job])[0]
            except sqlite3.Error as exc:
                if isinstance(job, Put) or not self._make_room(exc):
                    raise
                return self._transact([job])[0]
        except (sqlite3.Error, UnicodeError) as exc:
            return self._failure(exc)

    def _make_room(self, exc: sqlite3.Error) -> bool:
        """Give a removal that failed for lack of room the ballast's; return whether it may succeed now."""
        if primary_code(exc) not in _NO_ROOM or not self._database.ballast.release():
            return False
        with contextlib.suppress(sqlite3.Error):  # what the log holds is room, too
            self._rollback()
            self._database.fold()
        return True

    def _scrub(self) -> Outcome:
        try:
            self._rollback()
            self._database.scrub()
        except sqlite3.Error as exc:
            return self._failure(exc)
        return ()

    def _failure(self, exc: Exception) -> StoreUnavailable:
        failure = unavailable(exc, self._path, "write")
        failure.__cause__ = exc
        return failure

    def _transact(self, jobs: Sequence[Job]) -> list[Outcome]:
        self._rollback()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes: list[Outcome] = [self._apply(job) for job in jobs]
            self._connection.execute("COMMIT")
        except BaseException:
            self._table.tally.revert()
            self._evicted.clear()
            self._rollback()
            raise
        self._table.tally.settle()
        self.totals = self._table.tally.totals
        if self._evicted:
            self.evictions, self._evicted = self.evictions + self._evicted, Counter()
        return outcomes

    def _rollback(self) -> None:
        """End a transaction that failed, unless SQLite did; called again before the next one, since it may fail too."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _apply(self, job: Job) -> tuple[str, ...]:
        match job:
            case Put():
                self._table.put(job.encoded, job.now_s)
                return ()
            case Purge():
                self._table.raise_fence(job.fence)
                if job.scrubbed:
                    self._table.owe_scrub()
                return tuple(entry_id for entry_id in job.entry_ids if self._table.delete(entry_id))
            case Sweep():
                return self._sweep(job)
            case MarkUsed():
                self._table.mark_used(job.uses)
                return ()
            case Discard():
                return (job.entry_id,) if self._table.delete_if_damaged(job.entry_id) else ()
            case Scrub():
                raise AssertionError("a file cannot be scrubbed within a transaction")
            case _:
                assert_never(job)

    def _sweep(self, job: Sweep) -> tuple[str, ...]:
        self._table.mark_used(job.uses)
        removed = self._sweeper.sweep(self._table, job.now_s)
        self._evicted.update((category, cause) for _, category, cause in removed)
        return tuple(entry_id for entry_id, _, _ in removed)
