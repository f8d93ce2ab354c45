"""What is left of erased entries, and how removals get through on a bad disk (reliability rows 56, 57)."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import Selector
from cacheproxy.settings import Store
from cacheproxy.store.ballast import SIZE_BYTES, Ballast
from cacheproxy.store.erasures import RETRY_S
from cacheproxy.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.entries import EPOCH, entry_id, make_entry, same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cacheproxy.model import Entry


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "e.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Disk:
    """A disk that can be made to fail: statements that write are refused while `fails` says so."""

    def __init__(self, code: str = "SQLITE_FULL") -> None:
        self.code = code
        self.fails: Callable[[str], bool] = lambda statement: False

    def factory(self) -> type[sqlite3.Connection]:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> sqlite3.Cursor:
                disk.check(args[0])
                return super().execute(*args)

            def executemany(self, *args: Any) -> sqlite3.Cursor:
                disk.check(args[0])
                return super().executemany(*args)

        return Connection

    def check(self, statement: str) -> None:
        writes = statement.startswith(("INSERT", "UPDATE", "DELETE", "COMMIT", "VACUUM", "PRAGMA wal_checkpoint"))
        if writes and self.fails(statement):
            failure = sqlite3.OperationalError("injected")
            failure.sqlite_errorcode = getattr(sqlite3, self.code)
            failure.sqlite_errorname = self.code
            raise failure


def _canary(number: int) -> str:
    return f"canary{number:05d}"


def _entry(number: int, chance: random.Random) -> Entry:
    canary = _canary(number)
    return replace(
        make_entry(canary, dim=8, padding=chance.choice([50, 300, 300, 1500, 9000, 60_000])),
        tenant=f"tenant-{number % 3}",
        user=f"user-{number % 3}" if number % 2 else "",
        tags=(f"{chance.randrange(10**6)}-tag-{canary}", "all"),
        namespace=f"space-{number % 3}",
    )


def _raw(file: Path) -> bytes:
    """Return the bytes of every file beside the store's, its own included."""
    return b"".join(path.read_bytes() for path in sorted(file.parent.iterdir()) if ".ballast" not in path.name)


def _damage(file: Path) -> None:
    file.write_bytes(b"rubbish" * 1000)


def _left(file: Path, numbers: set[int]) -> list[int]:
    raw = _raw(file)
    return [number for number in sorted(numbers) if _canary(number).encode() in raw]


async def _churn(store: SqliteStore, count: int, chance: random.Random) -> None:
    """Put, replace, use and purge in such an order that pages are split and merged."""
    for start in range(0, count, 50):
        numbers = range(start, start + 50)
        await asyncio.gather(*(store.put(_entry(number, chance), store.fence) for number in numbers))
        for number in chance.sample(range(start + 50), 10):
            await store.put(_entry(number, chance), store.fence)
        await store.purge([entry_id(_canary(number)) for number in chance.sample(range(start + 50), 12)])


SELECTORS = {
    "tenant": Selector(tenant="tenant-1"),
    "namespace": Selector(namespace="space-1"),
    "ids": Selector(ids=tuple(entry_id(_canary(number)) for number in range(1, 1000, 3))),
}


@pytest.mark.parametrize(
    ("count", "seed"),
    [(200, 0), *(pytest.param(600, seed, marks=pytest.mark.slow) for seed in range(1, 5))],
)
@pytest.mark.parametrize("selector", SELECTORS.values(), ids=SELECTORS)
async def test_nothing_erased_can_be_read_from_any_file_afterwards(
    file: Path, clock: FakeClock, selector: Selector, count: int, seed: int
) -> None:
    mine = set(range(1, count, 3))
    others = [number for number in range(count) if number not in mine]
    async with SqliteStore(file, Store(), clock) as store:
        await _churn(store, count, random.Random(seed))
        assert len(_left(file, mine)) > count // 5
        assert len(await store.erase(selector)) > count // 5
        assert _left(file, mine) == []
        assert b"tenant-1" not in _raw(file)
        assert b"user-1" not in _raw(file)
        kept = [number for number in others if await store.get(entry_id(_canary(number)))]
        assert len(kept) > count // 3
    assert _left(file, mine) == []
    async with SqliteStore(file, Store(hot_bytes=0), clock) as store:
        assert [number for number in others if await store.get(entry_id(_canary(number)))] == kept
        assert (store.quarantined, store.corrupt_records) == (0, 0)


async def test_what_was_purged_or_swept_before_is_gone_with_the_next_erase(file: Path, clock: FakeClock) -> None:
    chance = random.Random(7)
    async with SqliteStore(file, Store(), clock) as store:
        await _churn(store, 300, chance)
        await store.purge([entry_id(_canary(number)) for number in range(0, 300, 2)])
        await store.erase(Selector(tenant="nobody"))
        assert _left(file, set(range(0, 300, 2))) == []
        assert len(_left(file, set(range(1, 300, 2)))) > 50


async def test_text_search_does_not_hold_up_the_writer(file: Path, clock: FakeClock) -> None:
    async with SqliteStore(file, Store(), clock) as store:
        await asyncio.gather(*(store.put(make_entry(str(n), padding=20_000), store.fence) for n in range(300)))
        page = await store.page(Selector(text="what is 299?"), limit=10)
        assert (page.entries, page.after is None) == ((), False)  # bounded: it read some megabytes and stopped
        search = asyncio.create_task(store.erase(Selector(text="no such words"), dry_run=True))
        assert await store.put(make_entry("meanwhile"), store.fence)
        assert await search == []


@pytest.mark.parametrize("code", ["SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY"])
async def test_an_erase_that_cannot_be_written_serves_nothing_and_is_tried_again(
    file: Path, clock: FakeClock, code: str
) -> None:
    disk = Disk(code)
    async with SqliteStore(file, Store(), clock, factory=disk.factory()) as store:
        for number in range(6):
            await store.put(_entry(number, random.Random(number)), store.fence)
        fence = store.fence
        disk.fails = lambda statement: True
        with pytest.raises(StoreUnavailable, match=code):
            await store.erase(Selector(tenant="tenant-1"))
        assert await store.get(entry_id(_canary(1))) is None
        assert await store.get(entry_id(_canary(2))) is not None
        assert (await store.page(Selector(tenant="tenant-1"))).entries == ()
        assert not await store.put(_entry(1, random.Random(1)), fence)
        with pytest.raises(StoreUnavailable):
            await store.sweep()
        disk.fails = lambda statement: False
        assert await store.sweep() == []  # not at once again: it may read and write the whole file
        assert await store.get(entry_id(_canary(4))) is None
        clock.advance(RETRY_S)
        assert set(await store.sweep()) == {entry_id(_canary(1)), entry_id(_canary(4))}
        assert _left(file, {1, 4}) == []
        assert len(_left(file, {0, 2, 3, 5})) == 4
        assert store.health() == ""
        entry = _entry(1, random.Random(1))
        assert await store.put(entry, store.fence)
        assert same(await store.get(entry.id), entry)


async def test_an_erase_that_could_not_rewrite_the_file_is_finished_after_a_restart(
    file: Path, clock: FakeClock
) -> None:
    disk = Disk()
    async with SqliteStore(file, Store(), clock, factory=disk.factory()) as store:
        await _churn(store, 100, random.Random(3))
        disk.fails = lambda statement: statement == "VACUUM"
        with pytest.raises(StoreUnavailable, match="make room"):
            await store.erase(Selector(tenant="tenant-1"))
        assert [one.tenant for one in store.holdings() if one.tenant == "tenant-1"] == []
        assert await store.put(make_entry("another"), store.fence)
    async with SqliteStore(file, Store(), clock) as store:
        await store.sweep()
        assert _left(file, {number for number in range(100) if number % 3 == 1}) == []
        assert same(await store.get(entry_id("another")), make_entry("another"))


async def test_an_erase_names_damaged_files_that_may_still_hold_what_is_erased(file: Path, clock: FakeClock) -> None:
    _damage(file)
    async with SqliteStore(file, Store(), clock) as store:
        with structlog.testing.capture_logs() as logs:
            await store.erase(Selector(tenant="tenant-1"))
    told = [event["files"] for event in logs if event["event"] == "store_moved_aside_files_remain"]
    assert told == [["e.db.corrupt-20270115T080000Z"]]


# --- the ballast ---


def _full(monkeypatch: pytest.MonkeyPatch, full: list[bool]) -> None:
    allocate = os.posix_fallocate

    def posix_fallocate(descriptor: int, offset: int, size: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)


async def test_on_a_full_disk_removals_get_the_ballasts_room_and_puts_do_not(
    file: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, ballast, full = Disk(), file.with_name("e.db.ballast"), list[bool]()
    _full(monkeypatch, full)
    async with SqliteStore(file, Store(hot_bytes=0), clock, factory=disk.factory()) as store:
        assert ballast.stat().st_size == SIZE_BYTES
        for key in "abc":
            await store.put(make_entry(key), store.fence)
        full.append(True)
        disk.fails = lambda statement: ballast.exists()  # what the ballast held is all the room there is
        with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
            await store.put(make_entry("d"), store.fence)
        assert ballast.exists()
        assert await store.purge([entry_id("a")]) == 1
        assert not ballast.exists()
        with pytest.raises(StoreUnavailable, match="for removals"):
            await store.put(make_entry("d"), store.fence)
        outcomes = await asyncio.gather(
            store.put(make_entry("d"), store.fence), store.purge([entry_id("b")]), return_exceptions=True
        )
        assert isinstance(outcomes[0], StoreUnavailable)
        assert outcomes[1] == 1
        assert same(await store.get(entry_id("c")), make_entry("c"))
        full.clear()
        disk.fails = lambda statement: False
        assert await store.put(make_entry("d"), store.fence)
        assert ballast.stat().st_size == SIZE_BYTES
        assert len(store) == 2
    async with SqliteStore(file, Store(), clock) as store:
        assert {id_ async for _, id_, _ in store.scan(EPOCH)} == {entry_id("c"), entry_id("d")}


async def test_a_store_opens_on_a_full_disk_with_the_ballasts_room(file: Path, clock: FakeClock) -> None:
    async with SqliteStore(file, Store(), clock) as store:
        await store.put(make_entry("a"), store.fence)
    disk, ballast = Disk(), file.with_name("e.db.ballast")
    disk.fails = lambda statement: ballast.exists() and ballast.stat().st_size >= SIZE_BYTES
    async with SqliteStore(file, Store(), clock, factory=disk.factory()) as store:
        assert same(await store.get(entry_id("a")), make_entry("a"))
        assert store.quarantined == 0


def test_a_disk_too_small_for_ballast_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _full(monkeypatch, [True])
    with structlog.testing.capture_logs() as logs:
        ballast = Ballast(tmp_path / "e.db")
    assert [event["event"] for event in logs] == ["store_ballast_missing"]
    assert list(tmp_path.iterdir()) == []
    assert not ballast.release()
    assert ballast.restore()
    assert not ballast.released
