"""What every store promises of sweeps under quotas: the rules of policy/evict.py, on rows of its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy import settings
from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import Partition, Quota
from cacheproxy.policy.evict import Cause
from cacheproxy.store.memory import MemoryStore
from cacheproxy.store.redis.store import RedisStore
from cacheproxy.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.entries import EPOCH, entry_id, make_entry
from tests.support.redis import redis_server
from tests.support.shared_store import shared_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import Protocol

    from cacheproxy.model import Entry

    class OpenStore(Protocol):
        """Opens the store under test with these quotas; on a file, what it held before is there."""

        def __call__(self, quotas: Mapping[str, Quota]) -> AbstractAsyncContextManager[Store]: ...


Store = MemoryStore | SqliteStore | RedisStore

ROOMY = 10**9
HALVES = {
    "flood": Quota(entries=50, size_bytes=ROOMY, tenant_share=0.5),
    "calm": Quota(entries=50, size_bytes=ROOMY, tenant_share=0.5),
}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> OpenStore:
    @asynccontextmanager
    async def opened(quotas: Mapping[str, Quota]) -> AsyncIterator[Store]:
        limits = settings.Store(max_entries=100)
        if request.param == "redis":
            async with (
                redis_server() as server,
                shared_store(server.url, tmp_path, clock, quotas=lambda: quotas, max_entries=100) as shared,
            ):
                yield shared
            return
        async with (
            MemoryStore(limits, clock, quotas=lambda: quotas)
            if request.param == "memory"
            else SqliteStore(tmp_path / "e.db", limits, clock, quotas=lambda: quotas)
        ) as store:
            yield store

    return opened


def entry(category: str, tenant: str, number: int, **fields: Any) -> Entry:
    made = make_entry(f"{category}/{tenant}/{number}", dim=0, **fields)
    partition = Partition(category=category, compatibility=b"", epoch=EPOCH)
    return replace(made, partition=partition, tenant=tenant)


async def fill(store: Store, clock: FakeClock, category: str, tenant: str, count: int) -> None:
    for number in range(count):
        clock.advance(1)
        await store.put(entry(category, tenant, number), store.fence)


async def swept(store: Store) -> int:
    many = 0
    while removed := await store.sweep():
        many += len(removed)
    return many


def held(store: Store) -> dict[tuple[str, str], int]:
    return {(one.category, one.tenant): one.entries for one in store.holdings()}


async def test_a_flood_takes_nothing_from_a_category_within_its_quota(open_store: OpenStore, clock: FakeClock) -> None:
    async with open_store(HALVES) as store:
        await fill(store, clock, "calm", "t", 40)
        for _ in range(4):
            await fill(store, clock, "flood", "t", 100)
            await swept(store)
        assert held(store) == {("calm", "t"): 40, ("flood", "t"): 58}
        assert set(store.evictions) == {("flood", Cause.OVER_QUOTA)}


async def test_a_flooding_tenant_takes_nothing_from_its_neighbour(open_store: OpenStore, clock: FakeClock) -> None:
    async with open_store(HALVES) as store:
        await fill(store, clock, "flood", "poor", 20)
        await fill(store, clock, "flood", "rich", 100)
        await swept(store)
        assert held(store) == {("flood", "poor"): 20, ("flood", "rich"): 78}
        assert store.evictions == {("flood", Cause.TENANT_SHARE): 22}


async def test_what_is_asked_for_often_outlives_what_is_not(open_store: OpenStore, clock: FakeClock) -> None:
    async with open_store({"faq": Quota(entries=100, size_bytes=ROOMY)}) as store:
        await fill(store, clock, "faq", "t", 110)
        for number in range(10):
            for _ in range(3):
                assert await store.get(entry("faq", "t", number).id) is not None
        clock.advance(1000)
        assert await swept(store) == 12
        for number in range(10):
            assert await store.get(entry("faq", "t", number).id) is not None
        assert store.evictions == {("faq", Cause.CAPACITY): 12}


async def test_what_is_gone_is_counted_by_category_and_goes_first(open_store: OpenStore, clock: FakeClock) -> None:
    async with open_store(HALVES) as store:
        await store.put(entry("calm", "t", 0, ttl_s=10), store.fence)
        await fill(store, clock, "flood", "t", 100)
        assert await swept(store) == 1
        assert store.evictions == {("calm", Cause.EXPIRED): 1}
        assert held(store) == {("flood", "t"): 100}


async def test_quotas_are_asked_for_at_every_sweep(open_store: OpenStore, clock: FakeClock) -> None:
    quotas = {"flood": Quota(entries=100, size_bytes=ROOMY)}
    async with open_store(quotas) as store:
        await fill(store, clock, "calm", "t", 50)
        await fill(store, clock, "flood", "t", 50)
        quotas["calm"] = quotas.pop("flood")
        await fill(store, clock, "calm", "u", 20)
        await swept(store)
        assert held(store) == {("calm", "t"): 50, ("calm", "u"): 20, ("flood", "t"): 28}


async def test_holdings_agree_with_what_was_put_replaced_and_purged(open_store: OpenStore, clock: FakeClock) -> None:
    async with open_store({}) as store:
        await fill(store, clock, "a", "t", 3)
        await fill(store, clock, "b", "t", 2)
        await store.put(replace(entry("a", "t", 0), tenant="u"), store.fence)
        await store.purge([entry("b", "t", 0).id])
        assert held(store) == {("a", "t"): 2, ("a", "u"): 1, ("b", "t"): 1}
        assert sum(one.size_bytes for one in store.holdings()) == store.size_bytes


async def test_a_restart_knows_who_holds_what(tmp_path: Path, clock: FakeClock) -> None:
    limits = settings.Store(max_entries=100)
    async with SqliteStore(tmp_path / "e.db", limits, clock, quotas=lambda: HALVES) as store:
        await fill(store, clock, "calm", "t", 40)
        await fill(store, clock, "flood", "t", 50)
        await store.get(entry("flood", "t", 0).id)
        before = store.holdings()
    async with SqliteStore(tmp_path / "e.db", limits, clock, quotas=lambda: HALVES) as store:
        assert sorted(map(repr, store.holdings())) == sorted(map(repr, before))
        await fill(store, clock, "flood", "u", 20)
        await swept(store)
        assert held(store)["calm", "t"] == 40
        assert await store.get(entry("flood", "t", 0).id) is not None, "its use was remembered"


async def test_a_sweep_that_failed_is_not_counted(tmp_path: Path, clock: FakeClock) -> None:
    def fails() -> Mapping[str, Quota]:
        raise StoreUnavailable("told to")

    asked = [fails]
    async with SqliteStore(
        tmp_path / "e.db", settings.Store(max_entries=10), clock, quotas=lambda: asked[0]()
    ) as store:
        await store.put(entry("a", "t", 99, ttl_s=1), store.fence)
        await fill(store, clock, "a", "t", 12)
        with pytest.raises(StoreUnavailable):
            await store.sweep()
        assert len(store) == 13
        assert store.evictions == {}
        asked[0] = dict
        assert await swept(store) == 3
        assert sum(store.evictions.values()) == 3
        assert held(store) == {("a", "t"): 10}


async def test_sweeps_keep_up_with_puts_at_the_cap(open_store: OpenStore, clock: FakeClock) -> None:
    async with open_store(HALVES) as store:
        for number in range(400):
            clock.advance(1)
            await asyncio.gather(
                *(store.put(entry("flood", f"t{number % 7}", number * 8 + turn), store.fence) for turn in range(8))
            )
            if store.over_cap:
                await swept(store)
            assert len(store) <= 108
        assert await store.get(entry_id("nobody")) is None
