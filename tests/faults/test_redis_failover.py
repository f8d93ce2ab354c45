"""Proxies over Sentinel and over a Cluster while servers die, come back and hand over their slots (rows 76, 78-80)."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.support.histories import violations
from tests.support.polling import eventually_true
from tests.support.redis_groups import DOWN_AFTER_MS, redis_cluster, sentinel_group
from tests.support.replica_load import asking
from tests.support.replicas import Fleet, fleet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.redis_groups import SentinelGroup

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

SETTINGS = {
    "CACHEPROXY_REPLICAS__LEASE_MS": "1000",
    "CACHEPROXY_REPLICAS__ACK_TIMEOUT_MS": "400",
    "CACHEPROXY_REPLICAS__RECONCILE_S": "5",
}
AGAIN_S = DOWN_AFTER_MS / 1000 + 12
"""Longest wait for hits after a failover: until it is noticed, decided and followed, on a busy machine."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[SentinelGroup, Fleet]]:
    """Three servers under Sentinels, and two proxies over them, for the module."""
    async with (
        sentinel_group() as group,
        fleet(tmp_path_factory.mktemp("guarded"), [group.url] * 2, **SETTINGS) as found,
    ):
        yield group, found


@pytest_asyncio.fixture(loop_scope="module")
async def guarded(whole: tuple[SentinelGroup, Fleet]) -> AsyncIterator[tuple[SentinelGroup, Fleet]]:
    """The same with everything mended and nothing recorded; and no promise broken at the end."""
    group, found = whole
    await group.mended()
    text = fresh()
    await found.spread(text, within_s=30)

    async def acknowledged() -> bool:
        return (await found.replicas[0].purge(text)).status == 200

    await eventually_true(acknowledged, "a purge is acknowledged", 20)
    found.history.clear()
    yield group, found
    assert violations(found.history) == []


def fresh() -> str:
    """Return a question that nobody asked."""
    return f"What is {uuid4().hex}?"


async def gone(found: Fleet, text: str) -> bool:
    """Whether nobody serves it."""
    return [await replica.serves(text) for replica in found.replicas] == [None] * len(found.replicas)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_every_request_is_answered_through_a_failover(guarded: tuple[SentinelGroup, Fleet], how: str) -> None:
    group, found = guarded
    known, purged = [fresh() for _ in range(5)], fresh()
    await found.spread(*known, purged)
    await found.replicas[0].purge_for_good(purged)
    old = await group.master()
    async with asking(found.replicas, lambda number: known[number % 5] if number % 2 else fresh()) as load:
        await asyncio.sleep(0.5)
        if how == "kill":
            await old.kill()
        else:
            old.pause()
        began_s = time.monotonic()
        await group.failed_over(old)
        await found.spread(fresh(), within_s=30)
        again_s = time.monotonic() - began_s
        if how == "kill":
            await old.start()
        else:
            old.resume()  # for a moment it takes itself for the master
        text = fresh()
        for _ in range(20):
            await found.replicas[0].ask(text)
            await found.replicas[1].purge(text)
            await asyncio.sleep(0.1)
    assert load.failures == {}
    assert load.outcomes["hit"] > 0
    assert again_s < AGAIN_S
    assert await gone(found, purged)


async def test_a_purge_that_the_failover_lost_is_made_good(guarded: tuple[SentinelGroup, Fleet]) -> None:
    group, found = guarded
    text, other = fresh(), fresh()
    await found.spread(text, other)
    old = await group.master()
    followers = [server for server in group.servers if server is not old]
    await old.ask("WAIT", 2, 2000)
    for server in followers:
        server.pause()
    await old.ask("CLIENT", "KILL", "TYPE", "replica")  # what was sent to them, and is not read yet, goes, too
    await found.replicas[0].purge_for_good(text)
    assert await gone(found, text)
    await old.kill()
    for server in followers:
        server.resume()
    new = await group.failed_over(old)
    entry = found.ids[text]
    await found.spread(fresh(), within_s=30)
    for _ in range(20):
        assert await gone(found, text), "an answer purged before the failover came back"
        await asyncio.sleep(0.1)

    async def removed() -> bool:
        return not await new.ask("KEYS", f"*doc*{entry}*")

    await eventually_true(removed, "the document is removed from the new master, too", 15)
    assert violations(found.history) == []


async def test_a_cluster_may_lose_a_node_and_move_slots(tmp_path: Path) -> None:
    async with redis_cluster() as cluster, fleet(tmp_path, [cluster.url] * 2, **SETTINGS) as found:
        known = [fresh() for _ in range(20)]  # in most of the sixteen shards
        await found.spread(*known)
        await found.replicas[0].purge_for_good(*known[:10])
        for text in known[:10]:
            assert await gone(found, text)
        await found.spread(*known)
        async with asking(found.replicas, lambda number: known[number % 20] if number % 2 else fresh()) as load:
            one, two = cluster.nodes[:2]
            await cluster.move(800, one, two)
            before_s = time.monotonic()
            await two.kill()
            await asyncio.sleep(2)
            await found.spread(*known, within_s=40)
            assert time.monotonic() - before_s < 40
            assert (await found.replicas[1].purge(*known)).status in {200, 202}
        assert load.failures == {}
        assert violations(found.history) == []


async def test_a_replica_asleep_through_a_failover_serves_nothing_of_before(
    guarded: tuple[SentinelGroup, Fleet],
) -> None:
    group, found = guarded
    text = fresh()
    await found.spread(text)
    sleeper = found.replicas[1]
    sleeper.server.send(signal.SIGSTOP)
    old = await group.master()
    await old.kill()
    await group.failed_over(old)

    async def purged() -> bool:
        return (await found.replicas[0].purge(text)).status == 200

    await eventually_true(purged, "the purge is acknowledged", 20)
    waking = asyncio.create_task(sleeper.ask(text))
    await asyncio.sleep(0.05)
    sleeper.server.send(signal.SIGCONT)
    assert (await waking).outcome in {"miss", "bypass"}
    assert violations(found.history) == []
