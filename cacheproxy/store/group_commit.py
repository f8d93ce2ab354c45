"""A queue of jobs in front of one thread: whatever waits while a batch is committed becomes the next batch."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import StoreUnavailable
from cacheproxy.store.writer import Purge, Put

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from concurrent.futures import Executor

    from cacheproxy.store.writer import Job, Outcome

_log = structlog.get_logger()

MAX_WAITING_BYTES = 64 * 1024 * 1024
BATCH_JOBS = 256
BATCH_BYTES = 8 * 1024 * 1024
PURGED_ENTRY_BYTES = 16 * 1024
"""What removing an entry counts for, so that a large purge is committed in steps."""

Waiting = tuple["Job", "asyncio.Future[Outcome | None]"]


class GroupCommit:
    """Hands jobs to `commit` in `executor`, in the order they came, and their outcomes to `finish` on the loop.

    `finish` runs for every job, also when nobody waits for it any more, and before whoever waits goes on.
    """

    def __init__(
        self,
        executor: Executor,
        commit: Callable[[Sequence[Job]], list[Outcome]],
        finish: Callable[[Job, Outcome], None],
    ) -> None:
        self._executor = executor
        self._commit = commit
        self._finish = finish
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def full(self) -> bool:
        """Whether the thread is so far behind that no put should be added."""
        return self._waiting_bytes >= MAX_WAITING_BYTES

    def submit(self, job: Job) -> asyncio.Future[Outcome | None]:
        """Queue a job; cancelling the future leaves the job in the queue. Only a withdrawn put's outcome is None."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome | None] = loop.create_future()
        self._waiting.append((job, future))
        self._waiting_bytes += _weight(job)
        self._idle.clear()
        if not self._scheduled:  # not before everything that is ready to submit has done so
            self._scheduled = True
            loop.call_soon(self._start)
        return future

    def withdraw_puts(self, entry_ids: Collection[str] | None = None) -> None:
        """Give up the puts of these ids, or all, that are not yet being written."""
        ids, staying = None if entry_ids is None else frozenset(entry_ids), deque[Waiting]()
        for job, future in self._waiting:
            if not isinstance(job, Put) or (ids is not None and job.encoded.entry.id not in ids):
                staying.append((job, future))
                continue
            self._waiting_bytes -= _weight(job)
            if not future.done():
                future.set_result(None)
        self._waiting = staying

    def abandon(self) -> None:
        """Give up everything that is not yet being written."""
        for _, future in self._waiting:
            if not future.done():
                future.set_result(StoreUnavailable("the store is closing"))
        self._waiting.clear()
        self._waiting_bytes = 0

    async def drain(self) -> None:
        """Return when no job is left."""
        await self._idle.wait()

    def _start(self) -> None:
        batch: list[Waiting] = []
        batch_bytes = 0
        while self._waiting and len(batch) < BATCH_JOBS and batch_bytes < BATCH_BYTES:
            batch.append(self._waiting.popleft())
            batch_bytes += _weight(batch[-1][0])
        self._waiting_bytes -= batch_bytes
        if not batch:
            self._scheduled = False
            self._idle.set()
            return
        running = asyncio.get_running_loop().run_in_executor(self._executor, self._commit, [job for job, _ in batch])
        running.add_done_callback(partial(self._end, batch))

    def _end(self, batch: Sequence[Waiting], running: asyncio.Future[list[Outcome]]) -> None:
        for (job, future), outcome in zip(batch, _outcomes(running, len(batch)), strict=True):
            self._finish(job, outcome)
            if not future.done():
                future.set_result(outcome)
        self._start()


def _outcomes(running: asyncio.Future[list[Outcome]], count: int) -> list[Outcome]:
    failure = asyncio.CancelledError() if running.cancelled() else running.exception()
    if failure is None:
        return running.result()
    _log.error("store_commit_failed", error=type(failure).__name__, jobs=count)
    unavailable = StoreUnavailable(f"write failed ({type(failure).__name__}); see the log")
    unavailable.__cause__ = failure
    return [unavailable] * count


def _weight(job: Job) -> int:
    if isinstance(job, Put):
        return job.encoded.size_bytes
    return len(job.entry_ids) * PURGED_ENTRY_BYTES if isinstance(job, Purge) else 0
