"""What every EntryStore promises (cacheproxy.ports.EntryStore)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy import settings
from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import ALIAS_TAG, Selector
from cacheproxy.store.caps import SWEEP_LIMIT
from cacheproxy.store.memory import MemoryStore
from cacheproxy.store.redis.store import RedisStore
from cacheproxy.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.entries import BODY, EPOCH, NOW_S, entry_id, make_entry, same
from tests.support.polling import eventually_true
from tests.support.redis import redis_server
from tests.support.shared_store import shared_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import Protocol

    from cacheproxy.model import Entry

    class OpenStore(Protocol):
        """Opens the store under test, empty, with these limits."""

        def __call__(self, **limits: Any) -> AbstractAsyncContextManager[Store]: ...


Store = MemoryStore | SqliteStore | RedisStore


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite", "sqlite-cold", "redis", "redis-cold"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> OpenStore:
    @asynccontextmanager
    async def opened(**limits: Any) -> AsyncIterator[Store]:
        if request.param.endswith("-cold"):
            limits["hot_bytes"] = 0
        if request.param.startswith("redis"):
            async with redis_server() as server, shared_store(server.url, tmp_path, clock, **limits) as shared:
                yield shared
            return
        chosen = settings.Store(**limits)
        store = (
            MemoryStore(chosen, clock) if request.param == "memory" else SqliteStore(tmp_path / "e.db", chosen, clock)
        )
        async with store:
            yield store

    return opened


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[Store]:
    async with open_store() as opened:
        yield opened


async def _scan(store: Store, epoch: str) -> dict[str, tuple[object, bytes]]:
    return {id_: (partition, vector.tobytes()) async for partition, id_, vector in store.scan(epoch)}


async def test_what_was_put_comes_back_in_every_part(store: Store) -> None:
    entries = [
        make_entry("with vector", dim=384),
        make_entry("without", dim=0),
        make_entry("odd", body={"z": 2**70, "a": 1.0}),
    ]
    for entry in entries:
        assert await store.put(entry, store.fence)
    for entry in entries:
        assert same(await store.get(entry.id), entry)
    assert len(store) == 3
    assert store.health() == ""


async def test_an_unknown_id_is_none(store: Store) -> None:
    for unknown in (entry_id("nobody"), "", "'; DROP TABLE entries; --"):
        assert await store.get(unknown) is None


async def test_a_put_replaces_the_entry_of_the_same_id(store: Store) -> None:
    for version in range(3):
        assert await store.put(make_entry("paris", version=version), store.fence)
        assert same(await store.get(entry_id("paris")), make_entry("paris", version=version))
    assert len(store) == 1
    assert list(await _scan(store, EPOCH)) == [entry_id("paris")]
    size = store.size_bytes
    await store.put(make_entry("paris", version=3, padding=5000), store.fence)
    assert size + 4900 < store.size_bytes < size + 6000  # counted by the pages of a file


async def test_an_entry_is_gone_the_instant_it_expires(store: Store, clock: FakeClock) -> None:
    await store.put(make_entry("paris", ttl_s=10), store.fence)
    clock.advance(9.999)
    assert await store.get(entry_id("paris")) is not None
    clock.advance(0.001)
    assert await store.get(entry_id("paris")) is None
    assert await _scan(store, EPOCH) == {}


WINDOWS: dict[str, dict[str, Any]] = {
    "by policy's leave": {"stale_until_s": NOW_S + 15},
    "by the backend's leave to revalidate": {"revalidate_s": 5.0},
    "by the backend's leave on errors": {"on_error_s": 5.0},
    "by all of them": {"stale_until_s": NOW_S + 15, "revalidate_s": 2.0, "on_error_s": 1.0},
}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
async def test_an_expired_entry_stays_while_it_may_be_served_stale(
    store: Store, clock: FakeClock, window: dict[str, Any]
) -> None:
    entry = replace(make_entry("paris", ttl_s=10), **window)
    await store.put(entry, store.fence)
    clock.advance(14.999)
    assert same(await store.get(entry.id), entry)
    assert list(await _scan(store, EPOCH)) == [entry.id]
    assert await store.sweep() == []
    clock.advance(0.001)
    assert await store.get(entry.id) is None
    assert await _scan(store, EPOCH) == {}
    assert await store.sweep() == [entry.id]
    assert len(store) == 0


async def test_a_put_may_bring_an_expired_id_back(store: Store, clock: FakeClock) -> None:
    await store.put(make_entry("paris", ttl_s=10), store.fence)
    clock.advance(10)
    await store.put(make_entry("paris", version=1, created_s=clock.now(), ttl_s=10), store.fence)
    assert same(await store.get(entry_id("paris")), make_entry("paris", version=1, created_s=clock.now(), ttl_s=10))
    assert await store.sweep() == []


async def test_purge_removes_counts_and_raises_the_fence(store: Store) -> None:
    for key in "abc":
        await store.put(make_entry(key), store.fence)
    before = store.fence
    assert await store.purge([entry_id("a"), entry_id("b"), entry_id("b"), entry_id("nobody")]) == 2
    assert store.fence > before
    assert await store.get(entry_id("a")) is None
    assert await store.get(entry_id("b")) is None
    assert same(await store.get(entry_id("c")), make_entry("c"))
    assert len(store) == 1
    assert list(await _scan(store, EPOCH)) == [entry_id("c")]


async def test_purging_nothing_still_raises_the_fence(store: Store) -> None:
    before = store.fence
    assert await store.purge([]) == 0
    assert store.fence > before


async def test_a_purge_of_thousands_removes_all_of_them(store: Store) -> None:
    keys = [str(number) for number in range(1500)]
    await asyncio.gather(*(store.put(make_entry(key, dim=0), store.fence) for key in keys))
    assert await store.purge([entry_id(key) for key in keys]) == len(keys)
    assert len(store) == 0
    assert store.size_bytes == 0


async def test_a_fill_that_began_before_a_purge_of_its_id_is_discarded(store: Store) -> None:
    fence = store.fence
    await store.purge([entry_id("other"), entry_id("paris")])
    await store.purge([entry_id("a later one")])
    assert not await store.put(make_entry("paris"), fence)
    assert await store.get(entry_id("paris")) is None
    assert len(store) == 0
    assert await store.put(make_entry("paris"), store.fence)


async def test_a_purge_does_not_touch_fills_of_other_ids(store: Store) -> None:
    fence = store.fence
    queued = asyncio.create_task(store.put(make_entry("queued"), fence))
    await asyncio.sleep(0)
    await asyncio.gather(store.purge([entry_id("other")]), store.purge([]))
    assert await queued
    assert await store.put(make_entry("paris"), fence)
    assert same(await store.get(entry_id("queued")), make_entry("queued"))
    assert same(await store.get(entry_id("paris")), make_entry("paris"))


@pytest.mark.parametrize("purged", ["paris", "original"])
async def test_what_was_purged_since_it_was_read_is_held_no_more_nor_is_what_repeats_it(
    store: Store, purged: str
) -> None:
    """Also once the purge is done, and something else was kept in its place."""
    await store.put(make_entry("original"), store.fence)
    await store.put(replace(make_entry("paris"), tags=(f"{ALIAS_TAG}{entry_id('original')}",)), store.fence)
    fence, read = store.fence, await store.get(entry_id("paris"))
    assert read is not None
    assert store.still_holds(read, fence)
    await store.purge([entry_id("other")])
    assert store.still_holds(read, fence)
    await store.purge([entry_id(purged)])
    assert not store.still_holds(read, fence)
    await store.put(make_entry(purged, version=2), store.fence)
    assert not store.still_holds(read, fence)


async def test_a_purge_that_cannot_be_remembered_by_id_refuses_every_fill_that_began_before(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder: Any = store._following if isinstance(store, RedisStore) else store
    name = "fences" if isinstance(store, RedisStore) else "_fences"
    monkeypatch.setattr(holder, name, type(getattr(holder, name))(store.fence, most_ids=2))
    fence = store.fence
    await store.purge([entry_id("paris")])
    between = store.fence
    await store.purge([entry_id("b"), entry_id("c")])
    for key in ("paris", "other"):
        assert not await store.put(make_entry(key), fence)
        assert await store.put(make_entry(key), between)
    assert not await store.put(make_entry("b"), between)
    assert await store.put(make_entry("b"), store.fence)


@pytest.mark.parametrize("steps", range(6))
async def test_a_put_that_races_a_purge_leaves_nothing_of_what_was_purged(store: Store, steps: int) -> None:
    """The purge comes so many steps of the loop after the put: before, in and after the put's group commit."""
    await store.put(make_entry("paris"), store.fence)
    late = asyncio.create_task(store.put(make_entry("paris", version=1), store.fence))
    for _ in range(steps):
        await asyncio.sleep(0)
    readers = [asyncio.create_task(store.get(entry_id("paris"))) for _ in range(3)]
    await store.purge([entry_id("paris")])
    assert await store.get(entry_id("paris")) is None
    await late
    await asyncio.gather(*readers)
    assert await store.get(entry_id("paris")) is None
    assert await _scan(store, EPOCH) == {}
    assert len(store) == 0


async def test_a_put_after_a_purge_in_the_same_group_commit_stays(store: Store) -> None:
    await store.put(make_entry("paris"), store.fence)
    purge = asyncio.create_task(store.purge([entry_id("paris")]))
    await asyncio.sleep(0)
    assert await store.put(make_entry("paris", version=1), store.fence)
    assert await purge == 1
    assert same(await store.get(entry_id("paris")), make_entry("paris", version=1))


async def test_a_late_put_in_the_same_group_commit_as_a_purge_is_discarded(store: Store) -> None:
    fence = store.fence
    purge = asyncio.create_task(store.purge([entry_id("paris")]))
    await asyncio.sleep(0)
    assert not await store.put(make_entry("paris"), fence)
    await purge
    assert len(store) == 0


async def test_sweep_removes_expired_entries_and_names_them(store: Store, clock: FakeClock) -> None:
    for key, ttl_s in (("a", 10), ("b", 20), ("c", 30)):
        await store.put(make_entry(key, ttl_s=ttl_s), store.fence)
    assert await store.sweep() == []
    clock.advance(20)
    assert sorted(await store.sweep()) == sorted([entry_id("a"), entry_id("b")])
    assert await store.sweep() == []
    assert len(store) == 1


async def test_sweep_removes_what_was_used_least_recently_above_the_entry_cap(
    open_store: OpenStore, clock: FakeClock
) -> None:
    async with open_store(max_entries=3) as store:
        for key in "abcde":
            clock.advance(1)
            await store.put(make_entry(key), store.fence)
        for key in "ab":
            clock.advance(1)
            assert await store.get(entry_id(key)) is not None
        due = store.over_cap
        assert await store.sweep() == [entry_id("c"), entry_id("d")]
        assert (due, store.over_cap) == (True, False)
        assert await store.sweep() == []
        assert len(store) == 3


async def test_sweep_takes_expired_entries_before_live_ones(open_store: OpenStore, clock: FakeClock) -> None:
    async with open_store(max_entries=2) as store:
        for key, ttl_s in (("a", 100), ("b", 100), ("c", 5)):
            clock.advance(1)
            await store.put(make_entry(key, ttl_s=ttl_s), store.fence)
        clock.advance(10)
        assert await store.sweep() == [entry_id("c")]
        assert await store.sweep() == []


async def test_sweep_keeps_the_byte_cap(open_store: OpenStore, clock: FakeClock) -> None:
    async with open_store(max_bytes=100_000) as store:
        for number in range(20):
            clock.advance(1)
            await store.put(make_entry(str(number), padding=10_000), store.fence)
        assert store.over_cap
        removed = await store.sweep()
        assert removed == [entry_id(str(number)) for number in range(len(removed))]
        assert 80_000 < store.size_bytes <= 100_000


async def test_a_full_store_is_swept_below_its_cap_so_that_the_next_put_needs_no_sweep(open_store: OpenStore) -> None:
    async with open_store(max_entries=100) as store:
        for number in range(101):
            await store.put(make_entry(str(number), dim=0), store.fence)
        assert len(await store.sweep()) == 3
        await store.put(make_entry("next", dim=0), store.fence)
        assert not store.over_cap


async def test_a_sweep_is_bounded_and_the_next_ones_finish_the_work(store: Store, clock: FakeClock) -> None:
    keys = [str(number) for number in range(SWEEP_LIMIT + 50)]
    await asyncio.gather(*(store.put(make_entry(key, dim=0, ttl_s=10), store.fence) for key in keys))
    clock.advance(10)
    first, second = await store.sweep(), await store.sweep()
    assert len(first) == SWEEP_LIMIT
    assert sorted(first + second) == sorted(entry_id(key) for key in keys)
    assert await store.sweep() == []
    assert len(store) == 0


async def test_puts_are_refused_when_no_sweep_keeps_up(open_store: OpenStore) -> None:
    async with open_store(max_entries=10) as store:
        puts = (store.put(make_entry(str(number), dim=0), store.fence) for number in range(2 * 75))
        outcomes = [(await asyncio.gather(put, return_exceptions=True))[0] for put in puts]
        assert outcomes[:75] == [True] * 75
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes[75:])
        assert len(store) == 75
        await store.sweep()
        assert await store.put(make_entry("again", dim=0), store.fence)


async def test_scan_yields_the_live_vectors_of_one_epoch(store: Store, clock: FakeClock) -> None:
    kept = [make_entry("a"), make_entry("b"), make_entry("c")]
    others = [make_entry("old encoder", epoch="other"), make_entry("exact only", dim=0), make_entry("brief", ttl_s=1)]
    for entry in kept + others:
        await store.put(entry, store.fence)
    await store.purge([entry_id("c")])
    clock.advance(1)
    expected = {entry.id: (entry.partition, entry.vector.tobytes()) for entry in kept[:2] if entry.vector is not None}
    assert await _scan(store, EPOCH) == expected
    assert list(await _scan(store, "other")) == [entry_id("old encoder")]
    assert await _scan(store, "unknown") == {}


async def test_scan_sees_every_entry_that_stays_while_others_come_and_go(store: Store) -> None:
    stay = [str(number) for number in range(1200)]
    await asyncio.gather(*(store.put(make_entry(key), store.fence) for key in stay))
    seen: list[str] = []
    async for _, id_, _ in store.scan(EPOCH):
        if len(seen) % 400 == 0:
            await store.put(make_entry(f"new {len(seen)}"), store.fence)
            await store.put(make_entry("0", version=len(seen)), store.fence)
        seen.append(id_)
    assert {entry_id(key) for key in stay} <= set(seen)


# --- the catalogue: the same store, seen by operators (cacheproxy.ports.EntryCatalogue) ---


def _entry(key: str, **parts: Any) -> Entry:
    """Return an entry whose parts that a selector names are as given."""
    entry = make_entry(key)
    category = parts.pop("category", entry.partition.category)
    return replace(entry, partition=replace(entry.partition, category=category), **parts)


MADE_OF_A = (f"{ALIAS_TAG}{entry_id('a')}", f"{ALIAS_TAG}{entry_id('b')}")
KEPT = {
    "a": _entry("a", tenant="t1", namespace="n1", category="code", model="m1", user="u1", tags=("x", "y")),
    "b": _entry("b", tenant="t1", namespace="n2", category="chat", model="m1", user="u2", tags=("x",), second="code"),
    "c": _entry(
        "c", tenant="t2", namespace="n1", category="code", model="m2", tags=MADE_OF_A, text="Wo ist STRASSE 7?"
    ),
    "d": _entry("d", tenant="t2", category="chat", created_s=NOW_S - 50, user="u1", tags=("y", "y"), text="100% _?"),
}
SELECTIONS: dict[str, tuple[Selector, str]] = {
    "ids": (Selector(ids=(entry_id("a"), entry_id("c"), entry_id("nobody"), entry_id("a"))), "ac"),
    "tenant": (Selector(tenant="t1"), "ab"),
    "namespace": (Selector(namespace="n1"), "ac"),
    "category or second": (Selector(category="code"), "abc"),
    "model": (Selector(model="m1"), "ab"),
    "tag": (Selector(tag="y"), "ad"),
    "parents": (Selector(parents=(entry_id("nobody"), entry_id("b"))), "c"),
    "parents and ids": (Selector(parents=(entry_id("a"),), ids=(entry_id("d"),)), ""),
    "parents and tenant": (Selector(parents=(entry_id("a"), entry_id("b")), tenant="t2"), "c"),
    "no child": (Selector(parents=(entry_id("c"),)), ""),
    "user": (Selector(user="u1"), "ad"),
    "before": (Selector(before_s=NOW_S), "d"),
    "text": (Selector(text="WHAT IS"), "ab"),
    "text folds": (Selector(text="stra\u00dfe"), "c"),
    "text is no pattern": (Selector(text="% _"), "d"),
    "tenant and tag": (Selector(tenant="t1", tag="y"), "a"),
    "user and text": (Selector(user="u1", text="100"), "d"),
    "ids and category": (Selector(ids=tuple(map(entry_id, "abcd")), category="chat"), "bd"),
    "nothing fits": (Selector(tenant="t1", user="u1", tag="z"), ""),
    "not a pattern": (Selector(tenant="t%"), ""),
}


async def _keep(store: Store) -> None:
    for entry in KEPT.values():
        assert await store.put(entry, store.fence)


async def _listed(store: Store, selector: Selector, limit: int = 100) -> list[Entry]:
    entries: list[Entry] = []
    after: int | None = 0
    while after is not None:
        page = await store.page(selector, after=after, limit=limit)
        assert len(page.entries) <= limit
        assert page.after is None or page.after > after
        entries += page.entries
        after = page.after
    return entries


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize(("selector", "meant"), SELECTIONS.values(), ids=SELECTIONS)
async def test_a_page_lists_what_is_meant_oldest_row_first(
    store: Store, selector: Selector, meant: str, limit: int
) -> None:
    await _keep(store)
    listed = await _listed(store, selector, limit)
    assert [entry.id for entry in listed] == [entry_id(key) for key in meant]
    assert all(same(entry, KEPT[key]) for entry, key in zip(listed, meant, strict=True))


@pytest.mark.parametrize(("selector", "meant"), SELECTIONS.values(), ids=SELECTIONS)
async def test_erase_removes_what_is_meant_and_nothing_else(store: Store, selector: Selector, meant: str) -> None:
    await _keep(store)
    ids = {entry_id(key) for key in meant}
    assert set(await store.erase(selector, dry_run=True)) == ids
    assert len(store) == 4
    assert set(await store.erase(selector)) == ids
    for key, entry in KEPT.items():
        assert same(await store.get(entry.id), None if key in meant else entry)
    assert set(await _scan(store, EPOCH)) == {entry.id for entry in KEPT.values()} - ids
    assert await _listed(store, selector) == []
    assert await store.erase(selector) == []
    assert store.health() == ""


async def test_an_empty_selector_lists_all_and_erases_none(store: Store) -> None:
    await _keep(store)
    assert len(await _listed(store, Selector(), limit=3)) == 4
    fence = store.fence
    assert await store.erase(Selector()) == []
    assert (len(store), store.fence) == (4, fence)


async def test_gone_entries_are_not_listed_but_erased(store: Store, clock: FakeClock) -> None:
    await store.put(make_entry("brief", ttl_s=1), store.fence)
    await store.put(make_entry("long"), store.fence)
    clock.advance(1)
    assert [entry.id for entry in await _listed(store, Selector())] == [entry_id("long")]
    assert await store.erase(Selector(tag="brief")) == [entry_id("brief")]
    assert len(store) == 1


async def test_an_erase_refuses_every_fill_that_began_before_it(store: Store) -> None:
    await _keep(store)
    fence = store.fence
    queued = asyncio.create_task(store.put(_entry("queued", tenant="t1"), fence))
    await asyncio.sleep(0)
    await store.erase(Selector(tenant="t1"))
    await queued
    assert store.fence > fence
    assert await store.get(entry_id("queued")) is None
    assert not await store.put(_entry("late", tenant="t1"), fence)
    assert not await store.put(_entry("late", tenant="other"), fence)
    assert await store.put(_entry("new", tenant="t1"), store.fence)
    assert [entry.id for entry in await _listed(store, Selector(tenant="t1"))] == [entry_id("new")]


async def test_a_dry_run_refuses_no_fill(store: Store) -> None:
    await _keep(store)
    fence = store.fence
    assert await store.erase(Selector(tenant="t1"), dry_run=True)
    assert await store.put(_entry("late", tenant="t1"), fence)


@pytest.mark.parametrize("steps", range(8))
async def test_nothing_erased_is_served_from_the_moment_of_the_call(store: Store, steps: int) -> None:
    await _keep(store)
    reading = [asyncio.create_task(store.get(entry_id(key))) for key in "ac"]
    erase = asyncio.create_task(store.erase(Selector(tenant="t1")))
    await asyncio.sleep(0)
    late = asyncio.create_task(store.put(_entry("a", tenant="t1"), store.fence - 1))
    for _ in range(steps):
        await asyncio.sleep(0)
    assert await store.get(entry_id("a")) is None
    assert await store.get(entry_id("c")) is not None
    assert await _listed(store, Selector(tenant="t1")) == []
    assert not await late
    assert sorted(await erase) == sorted([entry_id("a"), entry_id("b")])
    assert (await asyncio.gather(*reading))[1] is not None
    assert await store.get(entry_id("a")) is None


async def test_a_cancelled_erase_hides_what_is_meant_until_a_sweep_has_removed_it(
    store: Store, clock: FakeClock
) -> None:
    await _keep(store)
    erase = asyncio.create_task(store.erase(Selector(tenant="t1")))
    await asyncio.sleep(0)
    erase.cancel()
    await asyncio.gather(erase, return_exceptions=True)
    assert await store.get(entry_id("a")) is None
    clock.advance(60)
    await store.sweep()
    assert len(store) == 2
    assert await store.put(KEPT["a"], store.fence)
    assert same(await store.get(entry_id("a")), KEPT["a"])


async def test_thousands_are_paged_and_erased(store: Store) -> None:
    keys = [str(number) for number in range(1500)]
    entries = [_entry(key, tenant=f"t{number % 2}", vector=None) for number, key in enumerate(keys)]
    for entry in entries:  # one after the other: those that are kept at once have no order
        await store.put(entry, store.fence)
    odd = [entry.id for entry in entries if entry.tenant == "t1"]
    assert [entry.id for entry in await _listed(store, Selector(tenant="t1"), limit=70)] == odd
    assert await store.erase(Selector(ids=tuple(odd)), dry_run=True) == odd
    assert await store.erase(Selector(tenant="t1")) == odd
    assert len(store) == 750


async def test_holdings_tell_what_each_tenant_holds_of_each_category(store: Store, clock: FakeClock) -> None:
    assert store.holdings() == []
    await _keep(store)
    await store.put(replace(KEPT["a"], expires_s=NOW_S + 1, stale_until_s=0.0), store.fence)
    held = {(one.category, one.tenant): (one.entries, one.size_bytes) for one in store.holdings()}
    assert {pair: entries for pair, (entries, _) in held.items()} == {
        ("code", "t1"): 1,
        ("chat", "t1"): 1,
        ("code", "t2"): 1,
        ("chat", "t2"): 1,
    }
    assert sum(size for _, size in held.values()) == store.size_bytes
    await store.erase(Selector(tenant="t2"))
    clock.advance(1)
    await store.sweep()
    assert [(one.category, one.tenant, one.entries) for one in store.holdings()] == [("chat", "t1", 1)]
    await store.purge([entry_id("b")])
    assert store.holdings() == []


@pytest.mark.parametrize("steps", range(4))
async def test_cancelling_any_call_leaves_the_store_usable(store: Store, steps: int) -> None:
    await store.put(make_entry("kept"), store.fence)
    calls = [
        store.get(entry_id("kept")),
        store.put(make_entry("maybe"), store.fence),
        store.purge([entry_id("nobody")]),
        store.sweep(),
        store.erase(Selector(tenant="nobody")),
        store.page(Selector()),
        _scan(store, EPOCH),
    ]
    tasks: list[asyncio.Task[object]] = [asyncio.ensure_future(call) for call in calls]
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert same(await store.get(entry_id("kept")), make_entry("kept"))
    assert await store.put(make_entry("later"), store.fence)
    assert same(await store.get(entry_id("later")), make_entry("later"))

    async def agrees() -> bool:
        return (await store.get(entry_id("maybe")) is None) == (entry_id("maybe") not in await _scan(store, EPOCH))

    # What an engine did for a caller who left is told by its log, which may come between the two looks.
    await eventually_true(agrees, "all that is asked says the same")
    assert store.health() == ""


async def test_concurrent_readers_of_one_entry_all_get_it(store: Store) -> None:
    await store.put(make_entry("paris"), store.fence)
    entries = await asyncio.gather(*(store.get(entry_id("paris")) for _ in range(50)))
    assert all(same(entry, make_entry("paris")) for entry in entries)


async def test_an_entry_that_cannot_be_recorded_is_refused_alone(store: Store) -> None:
    bad = make_entry("bad", body={**BODY, "odd": "\ud800"})
    outcomes = await asyncio.gather(
        store.put(make_entry("good"), store.fence), store.put(bad, store.fence), return_exceptions=True
    )
    assert outcomes[0] is True
    assert isinstance(outcomes[1], StoreUnavailable)
    assert len(store) == 1
