"""The store of a replica, opened: its logs are followed, and its index hears of what other replicas keep and remove."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cacheproxy.ailing import ails
from cacheproxy.errors import IndexUnavailable
from cacheproxy.ports import Acknowledgement, ReplicaState
from cacheproxy.shared.lease import BEGINNING, Position
from cacheproxy.store.redis.journal import FILE as PURGES
from cacheproxy.store.redis.store import RedisStore
from cacheproxy.supervise import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.index.spaces import Spaces
    from cacheproxy.model import Partition, Quota
    from cacheproxy.ports import Clock
    from cacheproxy.replica import Replica
    from cacheproxy.settings import Settings
    from cacheproxy.shared.layout import Log
    from cacheproxy.shared.members import Members

LOAD_S = 60.0
"""Longest wait of a start for the engine's entries; what is not there by then comes while requests are answered."""
_AWAY_S = 1.0
_POLL_S = 0.02

log = structlog.get_logger()


@asynccontextmanager
async def open_shared_store(
    replica: Replica, settings: Settings, clock: Clock, data_dir: Path, quotas: Callable[[], Mapping[str, Quota]]
) -> AsyncIterator[RedisStore]:
    """Open the store and follow its logs until the block ends. Raises ConfigError.

    Waits until everything was read, unless the engine is away: then requests go to the backend until it comes.
    """
    from cacheproxy.shared.follower import Follower  # it loads the engine's client

    link, layout, members = replica.link, replica.layout, replica.members
    store = RedisStore(
        link,
        layout,
        members,
        settings.store,
        settings.replicas,
        clock,
        data_dir / PURGES,
        leads=lambda: replica.election.leads,
        quotas=quotas,
    )
    async with store, Supervisor() as tasks:
        for shard in range(layout.shards):
            follow, resync = partial(store.follow, shard), partial(store.resync, shard)
            tasks.spawn(Follower(link, layout, shard, members, follow, resync).run())
        await _loaded(store, members, clock)
        yield store


async def _loaded(store: RedisStore, members: Members, clock: Clock) -> None:
    began_s = clock.monotonic()
    while not store.loaded:
        waited_s = clock.monotonic() - began_s
        if waited_s > LOAD_S or (waited_s > _AWAY_S and members.epoch("c") is None):
            log.warning("replica_starts_behind", waited_s=round(waited_s, 1), entries=len(store))
            return
        await asyncio.sleep(_POLL_S)
    log.info("replica_loaded", took_s=round(clock.monotonic() - began_s, 2), entries=len(store))


class Findable:
    """A listener of the shared store: what other replicas keep can be found here, what they remove cannot.

    `gone` is told of what was removed, too.
    """

    def __init__(self, index: Spaces) -> None:
        self.gone: Callable[[Collection[str]], None] | None = None
        self._index = index

    def came(self, partition: Partition, entry_id: str, vector: NDArray[np.float32]) -> None:
        """Make an entry findable; one of another encoder serves the very same request only."""
        if partition.epoch != self._index.base:
            return
        try:
            self._index.add(partition, entry_id, vector)
        except IndexUnavailable as exc:
            log.warning("replica_vector_refused", reason=exc.message)

    def went(self, entry_ids: Collection[str]) -> None:
        """Forget entries."""
        self._index.remove(entry_ids)
        if self.gone is not None:
            self.gone(entry_ids)


class SharedReplicas:
    """`ports.Replicas` of a proxy that shares its store."""

    def __init__(self, store: RedisStore, replica: Replica, *, timeout_s: float) -> None:
        self._store = store
        self._replica = replica
        self._members = replica.members
        self._logs = replica.layout.logs
        self._timeout_s = timeout_s

    @property
    def own(self) -> str:
        """The name of this one."""
        return self._members.replica

    def asked(self) -> Mapping[int, str]:
        """Return, by shard, the last message that a removal asked for here made."""
        return dict(self._store.positions)

    async def acknowledged(self, since: Mapping[int, str]) -> Acknowledgement:
        """Wait until every replica has applied the removals that were asked for here since `asked` returned `since`.

        Of a shard where there was none since, nobody is waited for: what is left of before was answered for itself.
        """
        positions: dict[Log, str] = {
            shard: place for shard, place in self._store.positions.items() if since.get(shard) != place
        }
        return await self._members.acknowledged(positions, self._timeout_s)

    async def listed(self) -> list[ReplicaState]:
        """Return those that were heard of of late. Raises SharedUnavailable."""
        found = await self._members.listed()
        newest: dict[str, Position] = {}
        for one in found:
            for log_, applied in one.applied.items():
                newest[log_] = max(newest.get(log_, BEGINNING), Position.read(applied))
        return [
            ReplicaState(
                replica=one.replica,
                state=one.state,
                heard_s=one.heard_s,
                applied=one.applied,
                lease_s=one.lease_s if one.state == "serving" else 0.0,
                behind_s=max((newest[log_].ms - Position.read(at).ms) / 1000 for log_, at in one.applied.items()),
                up_s=one.up_s,
            )
            for one in found
        ]

    def lag_s(self) -> float:
        """Return how far this one is behind, at the log where it is farthest."""
        return max(map(self._members.lag_s, self._logs))

    def lease_s(self) -> float:
        """Return for how long this one may serve without hearing from the engine again."""
        return min(map(self._members.left_s, self._logs))

    def ails(self) -> str:
        """Return why this one serves nothing that is kept, or keeps nothing more; "" when it does both."""
        return ails(self._replica)

    def openings(self) -> int:
        """Return how often the engine failed so that it was left alone for a moment."""
        return self._members.openings


class Alone:
    """`ports.Replicas` of a proxy that shares nothing."""

    own = ""

    def asked(self) -> Mapping[int, str]:
        """Return nothing."""
        return {}

    async def acknowledged(self, since: Mapping[int, str]) -> Acknowledgement:
        """Return at once: nobody else serves anything."""
        del since
        return Acknowledgement()

    async def listed(self) -> list[ReplicaState]:
        """Return none."""
        return []

    def lag_s(self) -> float:
        """Return 0."""
        return 0.0

    def lease_s(self) -> float:
        """Return 0."""
        return 0.0

    def ails(self) -> str:
        """Return ""."""
        return ""

    def openings(self) -> int:
        """Return 0."""
        return 0
