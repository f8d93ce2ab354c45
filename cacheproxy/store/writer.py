"""What is done to a store file, many jobs to a transaction. Runs in the writer thread only."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from cacheproxy.errors import StoreUnavailable
from cacheproxy.store.caps import SWEEP_LIMIT, Caps
from cacheproxy.store.condition import unavailable
from cacheproxy.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cacheproxy.store.codec import Encoded
    from cacheproxy.store.database import Database


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """Remove what is gone, then what was used least recently, above the caps."""

    now_s: float
    used_s: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MarkUsed:
    """Note when entries were last used."""

    used_s: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Discard:
    """Remove an entry whose record was found damaged, unless it was replaced."""

    entry_id: str


Job = Put | Purge | Sweep | MarkUsed | Discard
Outcome = tuple[str, ...] | StoreUnavailable
"""The ids that a job removed, or why it was not done."""


class Writer:
    """Applies jobs in order, all in one transaction; when that fails, each in its own."""

    def __init__(self, database: Database, caps: Caps) -> None:
        self._connection = database.writer
        self._path = database.path
        self._caps = caps
        self._table = Table(database.writer, database.totals)
        self.totals = database.totals
        """Entries and bytes as of the last commit; read from other threads."""

    def commit(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Return each job's outcome once what was done is committed."""
        try:
            return self._transact(jobs)
        except (sqlite3.Error, UnicodeError) as exc:
            if len(jobs) == 1:
                failure = unavailable(exc, self._path, "write")
                failure.__cause__ = exc
                return [failure]
        return [outcome for job in jobs for outcome in self.commit([job])]

    def _transact(self, jobs: Sequence[Job]) -> list[Outcome]:
        self._rollback()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes: list[Outcome] = [self._apply(job) for job in jobs]
            self._connection.execute("COMMIT")
        except BaseException:
            self._table.totals = self.totals
            self._rollback()
            raise
        self.totals = self._table.totals
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
                return tuple(entry_id for entry_id in job.entry_ids if self._table.delete(entry_id))
            case Sweep():
                return self._sweep(job)
            case MarkUsed():
                self._table.mark_used(job.used_s)
                return ()
            case Discard():
                return (job.entry_id,) if self._table.delete_if_damaged(job.entry_id) else ()
            case _:
                assert_never(job)

    def _sweep(self, job: Sweep) -> tuple[str, ...]:
        self._table.mark_used(job.used_s)
        removed = [id_ for id_ in self._table.gone(job.now_s, SWEEP_LIMIT) if self._table.delete(id_)]
        if self._caps.over(*self._table.totals):
            for entry_id in self._table.least_recently_used(SWEEP_LIMIT - len(removed)):
                if not self._caps.above_target(*self._table.totals):
                    break
                if self._table.delete(entry_id):
                    removed.append(entry_id)
        return tuple(removed)
