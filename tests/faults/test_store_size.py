"""A store takes on the disk what it says it takes, whatever it holds and whoever fills it (reliability row 62)."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheproxy.model import Quota
from cacheproxy.settings import Store
from cacheproxy.store.memory import MemoryStore
from cacheproxy.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.entries import make_entry

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.model import Entry

CAP = 24 * 1024 * 1024


def _in_use(store: SqliteStore) -> int:
    """Return the bytes of the file's pages that hold something."""
    reader = store._opened().reader
    pages, free, page_bytes = (
        reader.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page_bytes)


def _entry(number: int, chance: random.Random, sizes: tuple[int, int], dim: int, tags: int) -> Entry:
    entry = make_entry(f"{number}", dim=dim, padding=chance.randrange(*sizes))
    return replace(
        entry,
        partition=replace(entry.partition, category=chance.choice(["code", "chat", "general-knowledge"])),
        tenant=hashlib.sha256(f"{chance.randrange(300)}".encode()).hexdigest(),
        user=hashlib.sha256(f"{number}".encode()).hexdigest() if number % 3 == 0 else "",
        tags=tuple(f"tag-{number}-{tag}" for tag in range(tags)),
        model="gpt-4o-mini-2024-07-18",
    )


SHAPES = {
    "tiny": ((0, 100), 0, 0, 1500),
    "tagged": ((0, 500), 0, 4, 1500),
    "with vector": ((0, 1000), 384, 0, 1500),
    "two to a page or one": ((500, 1600), 8, 1, 1500),
    "answers": ((500, 8000), 384, 1, 1000),
    "large": ((5000, 60_000), 384, 1, 300),
    "huge": ((300_000, 1_000_000), 384, 1, 30),
}


@pytest.mark.parametrize(("sizes", "dim", "tags", "count"), SHAPES.values(), ids=SHAPES)
async def test_what_a_store_counts_is_what_its_file_takes(
    tmp_path: Path, sizes: tuple[int, int], dim: int, tags: int, count: int
) -> None:
    chance = random.Random(count)
    async with SqliteStore(tmp_path / "e.db", Store(hot_bytes=0), FakeClock()) as store:
        entries = [_entry(number, chance, sizes, dim, tags) for number in range(count)]
        for start in range(0, count, 100):
            await asyncio.gather(*(store.put(entry, store.fence) for entry in entries[start : start + 100]))
        assert 0.9 < store.size_bytes / _in_use(store) < 1.1


@pytest.mark.slow
async def test_many_tenants_with_huge_entries_stay_within_the_cap(tmp_path: Path) -> None:
    """Small and huge entries of hundreds of tenants, six times as much as fits; swept as the proxy does."""
    chance, clock = random.Random(62), FakeClock()
    largest = smallest = written = 0
    async with SqliteStore(tmp_path / "e.db", Store(hot_bytes=0, max_bytes=CAP), clock) as store:
        for number in range(100_000):
            sizes = (200_000, 1_000_000) if chance.random() < 0.02 else (100, 20_000)
            entry = _entry(number, chance, sizes, 384, 1)
            clock.advance(0.1)
            assert await store.put(entry, store.fence)
            written += len(str(entry.reply.body))
            while store.over_cap and await store.sweep():
                pass
            if number % 100 == 0 and written > CAP:
                in_use = _in_use(store)
                largest, smallest = max(largest, in_use), min(smallest or in_use, in_use)
            if written > 6 * CAP:
                break
        assert largest <= CAP * 1.1
        assert smallest >= CAP * 0.8
        log = (tmp_path / "e.db-wal").stat().st_size
    assert log <= 64 * 1024 * 1024
    assert (tmp_path / "e.db").stat().st_size <= CAP * 1.25  # pages that are free are used again


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("quotas", [{}, {"code": Quota(entries=500, size_bytes=CAP // 4, tenant_share=0.1)}])
async def test_no_sweep_holds_up_the_loop(tmp_path: Path, kind: str, quotas: dict[str, Quota]) -> None:
    """In the loop thread's own time, since that of the machine is shared: no sweep takes 50 ms of it."""
    chance, clock = random.Random(5), FakeClock()
    limits = Store(hot_bytes=0, max_bytes=CAP)
    longest_s = 0.0
    async with (
        MemoryStore(limits, clock, quotas=lambda: quotas)
        if kind == "memory"
        else SqliteStore(tmp_path / "e.db", limits, clock, quotas=lambda: quotas)
    ) as store:
        for start in range(0, 12_000, 400):
            entries = [_entry(number, chance, (100, 3000), 384, 1) for number in range(start, start + 400)]
            clock.advance(1)
            await asyncio.gather(*(store.put(entry, store.fence) for entry in entries))
            while store.over_cap:
                before_s = time.thread_time()
                assert await store.sweep()
                longest_s = max(longest_s, time.thread_time() - before_s)
    assert 0 < longest_s < 0.05
