"""The supervisor: every task that outlives a request belongs to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

log = structlog.get_logger()


class Supervisor:
    """Owns background tasks: logs and counts those that fail, cancels the rest at the end.

    Use it as an async context manager.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Start a task and return it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def every(self, interval_s: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Repeat `work` with pauses of `interval_s`. The other border where any exception ends: logged, tried again."""
        self.spawn(self._repeat(interval_s, work, name))

    async def _repeat(self, interval_s: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await work()
            except Exception:
                self.failures += 1
                log.exception("background_failed", work=name)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures += 1
            log.error("task_failed", exc_info=error)
