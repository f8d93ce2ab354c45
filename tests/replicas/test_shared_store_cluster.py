"""The store of replicas over a Cluster of six, and Sentinels whose master goes: sixteen shards, or another server."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import Selector
from tests.support.entries import EPOCH, entry_id, make_entry
from tests.support.polling import eventually, eventually_true
from tests.support.redis_groups import redis_cluster, sentinel_group
from tests.support.shared_store import joined_store

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.model import Entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

KEYS = [str(number) for number in range(64)]


def fresh(key: str, **parts: Any) -> Entry:
    return replace(make_entry(key, created_s=time.time()), **parts)


async def test_entries_of_all_shards_are_kept_listed_purged_and_erased(tmp_path: Path) -> None:
    async with (
        redis_cluster() as cluster,
        joined_store(cluster.url, tmp_path / "a") as one,
        joined_store(cluster.url, tmp_path / "b") as other,
    ):
        assert one.layout.shards == 16
        began = other.store.fence
        for number, key in enumerate(KEYS):
            assert await one.store.put(fresh(key, tenant=f"t{number % 2}"), one.store.fence)
        await eventually(lambda: len(other.store) == len(KEYS), "all is there", within_s=10)
        assert len([found async for found in other.store.scan(EPOCH)]) == len(KEYS)
        page = await other.store.page(Selector(), limit=len(KEYS))
        assert [entry.id for entry in page.entries] == [entry_id(key) for key in KEYS]
        assert await other.store.purge([entry_id(key) for key in KEYS[:10]]) == 10
        positions: Any = dict(other.store.positions)
        assert (await other.members.acknowledged(positions, 5.0)).everybody
        assert len(one.store) == len(KEYS) - 10
        assert await one.store.purge([entry_id(key) for key in KEYS[10:12]]) == 2
        assert not await other.store.put(fresh(KEYS[10]), began)
        removed = await one.store.erase(Selector(tenant="t0"))
        assert len(removed) == 26
        await eventually(lambda: len(other.store) == 26, "all followed")
        assert await one.store.reconcile() == 0
        assert await other.store.reconcile() == 0


async def test_a_purge_holds_over_a_failover_that_may_have_lost_it(tmp_path: Path) -> None:
    async with sentinel_group() as group:  # noqa: SIM117 - the url
        async with joined_store(group.url, tmp_path / "a") as one, joined_store(group.url, tmp_path / "b") as other:
            for key in ("kept", "purged"):
                assert await one.store.put(fresh(key), one.store.fence)
            await eventually(lambda: len(other.store) == 2, "all is there")
            master = await group.master()
            await one.store.purge([entry_id("purged")])
            await one.members.acknowledged({0: one.store.positions[0]}, 5.0)
            await master.kill()
            await group.failed_over(master)

            async def serves(joined: Any) -> bool:
                try:
                    assert await joined.store.get(entry_id("purged")) is None
                except StoreUnavailable:
                    return False
                return True

            for joined in (one, other):
                await eventually_true(lambda joined=joined: serves(joined), "it serves again", within_s=30)  # type: ignore[misc]  # bound now
            assert await one.store.put(fresh("new"), one.store.fence)
            await eventually(lambda: entry_id("new") in other.store._directory, "they go on", within_s=5)
