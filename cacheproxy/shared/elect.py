"""One of the replicas for work that one should do: elected by a key that ends by itself.

Two may believe it for a moment where the engine was replaced: what the leader does must bear being done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import SharedUnavailable
from cacheproxy.shared.lease import margin_s
from cacheproxy.shared.script import Script

if TYPE_CHECKING:
    from cacheproxy.ports import Clock
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link

log = structlog.get_logger()

TERM_S = 6.0
_PART = 3
_ASK_S = 1.0

# Deleting first lets the rest pass when memory is full (see members.py).
_STAND = Script(
    """
redis.call('DEL', KEYS[2])
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)
_RESIGN = Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")


class Election:
    """Stands for one task's leadership until the block ends. Use it as an async context manager."""

    def __init__(
        self, link: Link, layout: Layout, replica: str, clock: Clock, task: str = "jobs", term_s: float = TERM_S
    ) -> None:
        self._link = link
        self._keys = [layout.key("c", "leader", task), layout.key("c", "scratch")]
        self._replica = replica
        self._clock = clock
        self._term_s = term_s
        self._until_s = float("-inf")
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Election:
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        if self.leads:
            self._until_s = float("-inf")
            with contextlib.suppress(SharedUnavailable):
                await self._link.slow_run(_RESIGN, self._keys[:1], [self._replica], timeout_s=_ASK_S / 4)

    @property
    def leads(self) -> bool:
        """Whether this replica is the one, at this moment."""
        return self._clock.monotonic() < self._until_s

    async def _run(self) -> None:
        while True:
            try:
                await self._stand()
            except Exception:  # a border: a bug must not end the election for good
                log.exception("background_failed", work="election")
            await asyncio.sleep(self._term_s / _PART)

    async def _stand(self) -> None:
        sent_s = self._clock.monotonic()
        with contextlib.suppress(SharedUnavailable):
            term_ms = int(self._term_s * 1000)
            if await self._link.slow_run(_STAND, self._keys, [self._replica, term_ms], timeout_s=_ASK_S):
                self._until_s = sent_s + self._term_s - margin_s(self._term_s)
            else:
                self._until_s = float("-inf")
