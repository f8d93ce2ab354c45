"""Fills, serves and purges of three replicas at once, in processes of their own: every promise is kept (rows 99, 100).

`CACHEPROXY_TEST_RACES_S` makes each run longer; `python -m tests.benchmarks.replicas --parts races` counts to 100,000.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.races import Races, race
from tests.support.redis import redis_server, valkey
from tests.support.redis_groups import redis_cluster

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis import RedisServer

SECONDS = float(os.environ.get("CACHEPROXY_TEST_RACES_S", "4"))
KEYS = 128
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 3 * SECONDS)]


def assert_kept(found: Races) -> None:
    """Assert that races took place, and that no promise was broken in any."""
    assert found.races > 100
    assert found.soon_after > 100
    assert found.violations == ()
    assert found.divergent == ()


async def test_races_over_one_server(redis: RedisServer, tmp_path: Path) -> None:
    assert_kept(await race(redis.url, tmp_path, replicas=3, keys=KEYS, seconds=SECONDS))


async def test_races_over_valkey(tmp_path: Path) -> None:
    async with redis_server(program=valkey()) as server:
        assert_kept(await race(server.url, tmp_path, replicas=2, keys=KEYS, seconds=SECONDS))


async def test_races_over_a_cluster(tmp_path: Path) -> None:
    async with redis_cluster() as cluster:
        # What was before this start is not known of a Cluster: for the first lease no purge is acknowledged at once.
        assert_kept(await race(cluster.url, tmp_path, replicas=2, keys=KEYS, seconds=SECONDS + 6))


async def test_races_while_the_engine_hangs_loses_its_connections_and_its_data(
    redis: RedisServer, tmp_path: Path
) -> None:
    async def trouble() -> None:
        await asyncio.sleep(1)
        for _ in range(5):
            await redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.2)
        redis.pause()
        await asyncio.sleep(3)
        redis.resume()
        await asyncio.sleep(2)
        await redis.ask("FLUSHALL")
        await asyncio.sleep(2)
        for key in await redis.ask("KEYS", "*log"):
            await redis.ask("XTRIM", key, "MAXLEN", 0)
        await redis.kill()
        await redis.start()

    found = await race(redis.url, tmp_path, replicas=3, keys=KEYS, seconds=SECONDS + 12, quiet_s=4, trouble=trouble)
    assert_kept(found)
    assert found.refused > 0
