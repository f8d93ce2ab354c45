"""A replica without a cache: a link, leases, followers of every log, and a list of what was applied."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from cacheproxy.clock import SystemClock
from cacheproxy.errors import SharedUnavailable
from cacheproxy.settings import Replicas, Store
from cacheproxy.shared.follower import Follower, Message, head
from cacheproxy.shared.layout import Layout, Log
from cacheproxy.shared.link import Link
from cacheproxy.shared.members import Members
from cacheproxy.shared.script import Script
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cacheproxy.shared.wire import Identity

PURGE = Script(
    """
redis.call('DEL', KEYS[2])
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', '100000', '*', 'op', 'purge', 'ids', ARGV[1])
"""
)


class Seat:
    """One of the replicas of a test. It applies nothing while `gate` is not set; `held_up` is a batch that waits there.

    `read_from` is the data that each log was last read again from, as a whole.
    """

    def __init__(self, url: str, **replicas: Any) -> None:
        limits = Replicas(**{"lease_ms": 800, **replicas})
        self.link = Link(Store(url=url), limits, SystemClock())
        self.layout = Layout("cacheproxy", self.link.shards)
        self.members = Members(self.link, self.layout, limits, SystemClock())
        self.applied: dict[Log, list[Message]] = {log: [] for log in self.layout.logs}
        self.applied_at_s: dict[Log, list[float]] = {log: [] for log in self.layout.logs}
        self.resyncs: list[tuple[Log, str]] = []
        self.read_from: dict[Log, Identity | None] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.held_up = asyncio.Event()
        self.failures: list[Exception] = []

    async def purge(self, log: Log, ids: str) -> str:
        """Append a purge and return its place."""
        keys = [self.layout.stream(log), self.layout.key(log, "doc", ids)]
        place: bytes = await self.link.slow_run(PURGE, keys, [ids], 5.0)  # no request: a busy machine is no fault
        return place.decode()

    def serves(self, log: Log | None = None) -> bool:
        """Whether it holds the lease of a log, or of all."""
        return all(self.members.serving(one) for one in (self.layout.logs if log is None else (log,)))

    def follower(self, log: Log) -> Follower:
        """Return who follows one log."""

        async def handle(messages: Sequence[Message]) -> None:
            if not self.gate.is_set():
                self.held_up.set()
                await self.gate.wait()
            if self.failures:
                raise self.failures.pop()
            self.applied[log] += messages
            self.applied_at_s[log] += [time.perf_counter()] * len(messages)

        async def resync(reason: str) -> str:
            self.resyncs.append((log, reason))
            last = await head(self.link, self.layout, log, 1.0)
            self.read_from[log] = self.link.identity(self.layout.stream(log))
            # Its state is what the log says: read again, it is all of that.
            told = await self.link.slow("XRANGE", self.layout.stream(log), "-", last, timeout_s=1.0)
            messages = [Message(log, at.decode(), dict(zip(said[::2], said[1::2], strict=True))) for at, said in told]
            self.applied[log] = [message for message in messages if message.op != b"open"]
            self.applied_at_s[log] = [time.perf_counter()] * len(self.applied[log])
            return last

        return Follower(self.link, self.layout, log, self.members, handle, resync)


@asynccontextmanager
async def seated(url: str, *, wait: bool = True, **replicas: Any) -> AsyncIterator[Seat]:
    """Run one until the block ends; `wait` until it serves."""
    seat = Seat(url, **replicas)
    async with seat.link, seat.members:
        tasks = [asyncio.create_task(seat.follower(log).run()) for log in seat.layout.logs]
        try:
            if wait:
                await eventually(seat.serves, "it serves", within_s=10)
            yield seat
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, SharedUnavailable):
                await asyncio.gather(*tasks)
