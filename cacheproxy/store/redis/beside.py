"""Work of a shared store that no request waits for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

RETRY_S = 1.0

log = structlog.get_logger()


class Beside:
    """Tasks that end with the store. An engine that is away is no failure of theirs."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Begin something."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def again(self, work: Callable[[], Coroutine[object, object, None]], pause_s: float) -> None:
        """Do something again and again, with pauses, a longer one after a failure."""
        self.spawn(self._forever(work, pause_s))

    async def close(self) -> None:
        """End all of it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forever(self, work: Callable[[], Coroutine[object, object, None]], pause_s: float) -> None:
        while True:
            try:
                await work()
            except StoreUnavailable as exc:
                log.debug("replica_work_failed", reason=exc.message)
                await asyncio.sleep(RETRY_S)
            except Exception:  # a border: the store goes on without this piece of work
                log.exception("background_failed", work="replica")
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(pause_s)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, StoreUnavailable):
            log.error("task_failed", exc_info=error)
