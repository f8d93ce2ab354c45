"""A store that replicas share, over a real engine."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cacheproxy import settings
from cacheproxy.clock import SystemClock
from cacheproxy.replicated import open_shared_store
from cacheproxy.shared.control import Control
from cacheproxy.shared.elect import Election
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.lease import Data
from cacheproxy.shared.link import Link
from cacheproxy.shared.members import Members
from cacheproxy.store.redis.store import RedisStore
from cacheproxy.supervise import Supervisor
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from cacheproxy.model import Quota
    from cacheproxy.ports import Clock
    from cacheproxy.shared.layout import Log


class HeldLease:
    """A lease that holds as long as a test says so."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.holds = True

    def serving(self, log: Log) -> bool:
        """Whether it holds."""
        del log
        return self.holds

    def data(self, log: Log) -> Data:
        """Return no mark and no history: any engine will do."""
        del log
        return Data("", "")


@dataclass(frozen=True)
class Message:
    """A message of a log."""

    id: str
    fields: dict[bytes, bytes]


@asynccontextmanager
async def shared_store(
    url: str,
    directory: Path,
    clock: Clock,
    *,
    quotas: Callable[[], Mapping[str, Quota]] = dict,
    replica: str = "one",
    **limits: Any,
) -> AsyncIterator[RedisStore]:
    """Open a replica's store, the only one that makes room, and follow its logs until the block ends."""
    chosen, replicas = settings.Store(url=url, **limits), settings.Replicas(timeout_ms=5000)
    async with Link(chosen, replicas, SystemClock()) as link:
        layout = Layout(chosen.prefix, link.shards)
        journal = directory / f"{replica}.purges.sqlite3"
        store = RedisStore(
            link, layout, HeldLease(replica), chosen, replicas, clock, journal, leads=lambda: True, quotas=quotas
        )
        async with store:
            tasks = [
                asyncio.create_task(
                    _follow(link, layout.stream(shard), store, shard, await store.resync(shard, "start"))
                )
                for shard in range(link.shards)
            ]
            try:
                yield store
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(link: Link, stream: str, store: RedisStore, shard: int, at: str) -> None:
    while True:
        reply = await link.slow("XREAD", "COUNT", 500, "BLOCK", 100, "STREAMS", stream, at, timeout_s=5)
        for _, entries in reply or ():
            told = [Message(raw.decode(), dict(zip(parts[::2], parts[1::2], strict=True))) for raw, parts in entries]
            at = told[-1].id
            await store.follow(shard, told)


@dataclass(frozen=True)
class Joined:
    """One replica's end of an engine, as far as its store needs it."""

    link: Link
    layout: Layout
    members: Members
    election: Election
    store: RedisStore


@asynccontextmanager
async def joined_store(
    url: str, directory: Path, *, reconcile_s: float = 1000.0, lease_ms: int = 2000, **limits: Any
) -> AsyncIterator[Joined]:
    """Open a replica's store with all that it has in a proxy: leases, followers, an election."""
    clock = SystemClock()
    replicas = settings.Replicas(timeout_ms=2000, reconcile_s=reconcile_s, lease_ms=lease_ms)
    chosen = settings.Settings(store=settings.Store(url=url, **limits), replicas=replicas)
    directory.mkdir(exist_ok=True)  # noqa: ASYNC240 - a test
    async with (
        Link(chosen.store, replicas, clock) as link,
        Members(link, layout := Layout(chosen.store.prefix, link.shards), replicas, clock) as members,
        Election(link, layout, members.replica, clock) as election,
        Supervisor() as tasks,
    ):
        tasks.spawn(Control(link, layout, members, log_messages=1000).run())
        end: Any = SimpleNamespace(link=link, layout=layout, members=members, election=election)
        async with open_shared_store(end, chosen, clock, directory, dict) as store:
            await eventually(lambda: not store.degraded(), "the store serves", within_s=20)
            yield Joined(link, layout, members, election, store)
