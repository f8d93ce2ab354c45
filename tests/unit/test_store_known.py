"""Which ids a store file may hold, so that what was never put is not looked for in it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import StoreUnavailable
from cacheproxy.settings import Store
from cacheproxy.store import reader
from cacheproxy.store.known import Known
from cacheproxy.store.sqlite import SqliteStore
from cacheproxy.store.table import load
from tests.support.clock import FakeClock
from tests.support.entries import entry_id, make_entry

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from cacheproxy.store.codec import Decoded


def ids(begin: int, count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(begin, begin + count)]


def test_what_was_added_is_always_known() -> None:
    known = Known(2_000, ids(0, 1_000))
    for one in ids(1_000, 1_000):
        known.add(one)
    assert all(one in known for one in ids(0, 2_000))


def test_of_what_was_never_added_hardly_anything_is_looked_for() -> None:
    known = Known(10_000, ids(0, 10_000))
    assert sum(one in known for one in ids(10_000, 10_000)) < 50


@pytest.mark.parametrize("odd", ["", "no hexadecimal digits", "ö"])
def test_an_id_of_another_form_is_looked_for(odd: str) -> None:
    assert odd in Known(10)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that were looked for in a file."""
    found: list[str] = []

    def noted(connection: sqlite3.Connection, one: str) -> Decoded | None:
        found.append(one)
        return load(connection, one)

    monkeypatch.setattr(reader, "load", noted)
    return found


async def test_the_file_is_read_for_what_it_holds_and_for_nothing_else(tmp_path: Path, reads: list[str]) -> None:
    kept, other = make_entry("kept"), entry_id("other")
    async with SqliteStore(tmp_path / "e.db", Store(hot_bytes=0), FakeClock()) as store:
        assert await store.get(kept.id) is None
        assert await store.put(kept, store.fence)
        assert await store.get(kept.id) is not None
        assert await store.get(other) is None
    assert reads == [kept.id]


async def test_a_store_that_is_opened_again_knows_what_its_file_holds(tmp_path: Path, reads: list[str]) -> None:
    async with SqliteStore(tmp_path / "e.db", Store(), FakeClock()) as store:
        assert await store.put(make_entry("kept"), store.fence)
    async with SqliteStore(tmp_path / "e.db", Store(), FakeClock()) as store:
        assert await store.get(entry_id("other")) is None
        assert await store.get(entry_id("kept")) is not None
    assert reads == [entry_id("kept")]


async def test_a_closed_store_knows_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "e.db", Store(), FakeClock())
    with pytest.raises(StoreUnavailable):
        await store.get(entry_id("other"))


async def test_a_store_without_a_cap_to_speak_of_opens_and_knows_what_it_holds(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "e.db", Store(max_entries=10**12, hot_bytes=0), FakeClock()) as store:
        kept = make_entry("kept")
        assert await store.put(kept, store.fence)
        assert await store.get(kept.id) is not None
