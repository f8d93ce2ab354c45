"""Several replicas' ends of one engine, in one process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cacheproxy.clock import SystemClock
from cacheproxy.settings import Replicas, Store
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.link import Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.redis import RedisServer
    from tests.support.redis_groups import Cluster

TERMS = Replicas(timeout_ms=2000)  # a busy machine is not what is tested


@asynccontextmanager
async def linked(redis: RedisServer | Cluster, replicas: Replicas = TERMS) -> AsyncIterator[tuple[Link, Layout]]:
    """One replica's way to the engine, and the names of its keys."""
    async with Link(Store(url=redis.url), replicas, SystemClock()) as link:
        yield link, Layout("cacheproxy", link.shards)
