"""Files of older versions are opened, served, swept and erased from by this one."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog

from cacheproxy import settings
from cacheproxy.model import Selector
from cacheproxy.store.backfill import STEP_ROWS, backfill
from cacheproxy.store.codec import encode
from cacheproxy.store.schema import MIGRATIONS, migrate, version_of
from cacheproxy.store.sqlite import SqliteStore
from cacheproxy.store.table import size_of
from tests.support.clock import FakeClock
from tests.support.entries import EPOCH, make_entry, same

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.model import Entry


async def test_entries_of_the_first_version_are_served_until_they_expire(tmp_path: Path) -> None:
    path, clock = tmp_path / "e.db", FakeClock()
    old = [
        replace(make_entry(key, ttl_s=ttl_s), stale_until_s=0.0, revalidate_s=0.0, on_error_s=0.0, vary=(), variant=b"")
        for key, ttl_s in (("brief", 10), ("long", 1000))
    ]
    write_first_version(path, old)
    async with SqliteStore(path, settings.Store(), clock) as store:
        assert store.quarantined == 0
        for entry in old:
            assert same(await store.get(entry.id), entry)
        assert {entry_id async for _, entry_id, _ in store.scan(EPOCH)} == {entry.id for entry in old}
        clock.advance(10)
        assert await store.get(old[0].id) is None
        assert await store.sweep() == [old[0].id]
        newer = make_entry("long", version=1, stale_s=5)
        assert await store.put(newer, store.fence)
        assert same(await store.get(newer.id), newer)
        assert store.corrupt_records == 0


async def test_a_file_of_the_second_version_loses_nothing_and_tells_whose_its_entries_are(tmp_path: Path) -> None:
    path, clock = tmp_path / "e.db", FakeClock()
    old = [_second_version(f"{number}", number) for number in range(2 * STEP_ROWS + 10)]
    write_second_version(path, old)
    async with SqliteStore(path, settings.Store(), clock) as store:
        assert (store.quarantined, store.corrupt_records, len(store)) == (0, 0, len(old))
        for entry in old[::50]:
            assert same(await store.get(entry.id), entry)
        held = {(one.tenant, one.entries) for one in store.holdings()}
        assert held == {(f"t{number}", len(old[number::3])) for number in range(3)}
        assert 0.98 < store.size_bytes / sum(size_of(encode(entry)) for entry in old) < 1.02
        tagged = await store.page(Selector(tag="5"))
        assert [entry.id for entry in tagged.entries] == [old[5].id]
        assert sorted(await store.erase(Selector(tenant="t1"))) == sorted(entry.id for entry in old[1::3])
        assert {entry_id async for _, entry_id, _ in store.scan(EPOCH)} == {
            entry.id for number, entry in enumerate(old) if number % 3 != 1
        }
    with closing(sqlite3.connect(path)) as connection:
        (expires, fill_ms), *_ = connection.execute("SELECT expires, fill_ms FROM entries WHERE id = ?", (old[0].id,))
        assert (expires, fill_ms) == (old[0].expires_s, old[0].fill_ms)
        assert "backfilled" not in dict(connection.execute("SELECT key, value FROM meta"))


def test_an_upgrade_that_is_cut_short_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    write_second_version(path, [_second_version(f"{number}", number) for number in range(STEP_ROWS + 10)])
    stopping = 3 + STEP_ROWS  # in the second step

    class Cut(sqlite3.Connection):
        updates = 0

        def execute(self, *args: Any) -> sqlite3.Cursor:
            Cut.updates += str(args[0]).startswith("UPDATE entries")
            if Cut.updates == stopping:
                raise KeyboardInterrupt
            return super().execute(*args)

    def opened(factory: type[sqlite3.Connection]) -> None:
        with closing(sqlite3.connect(path, isolation_level=None, factory=factory)) as connection:
            migrate(connection, version_of(connection, path))
            assert backfill(connection) == 0

    with pytest.raises(KeyboardInterrupt):
        opened(Cut)
    with structlog.testing.capture_logs() as logs:
        opened(sqlite3.Connection)
    assert [(event["event"], event["entries"]) for event in logs] == [("store_upgraded", 10)]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM entries WHERE tenant = ''").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM tags").fetchone() == (2 * (STEP_ROWS + 10),)


async def test_a_damaged_record_is_dropped_by_the_upgrade_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    old = [_second_version(f"{number}", number) for number in range(3)]
    write_second_version(path, old)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE documents SET record = zeroblob(50) WHERE n = 2")
    async with SqliteStore(path, settings.Store(), FakeClock()) as store:
        assert len(store) == 2
        assert store.corrupt_records == 1
        assert await store.get(old[1].id) is None
        assert same(await store.get(old[2].id), old[2])


def _second_version(key: str, number: int) -> Entry:
    return replace(make_entry(key), tenant=f"t{number % 3}")


def write_second_version(path: Path, entries: list[Entry]) -> None:
    """Write a file as version 2 did, with its records."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, 0, MIGRATIONS[:2])
        connection.execute("BEGIN")
        for entry in entries:
            encoded = encode(entry)
            payload = msgspec.msgpack.encode(msgspec.msgpack.decode(encoded.record[9:])[:20])
            record = b"cpxe\x02" + zlib.crc32(payload, 2).to_bytes(4, "little") + payload
            row = connection.execute(
                "INSERT INTO entries (id, epoch, category, compatibility, created, gone, used, size) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.id,
                    entry.partition.epoch,
                    entry.partition.category,
                    entry.partition.compatibility,
                    entry.created_s,
                    entry.gone_s,
                    entry.created_s,
                    len(record) + len(encoded.vector or b"") + 450,
                ),
            ).lastrowid
            connection.execute("INSERT INTO documents VALUES (?, ?, ?)", (row, encoded.vector, record))
        connection.execute("COMMIT")


def write_first_version(path: Path, entries: list[Entry]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, 0, MIGRATIONS[:1])
        for entry in entries:
            encoded = encode(entry)
            payload = msgspec.msgpack.encode(msgspec.msgpack.decode(encoded.record[9:])[:15])
            record = b"cpxe\x01" + zlib.crc32(payload, 1).to_bytes(4, "little") + payload
            row = connection.execute(
                "INSERT INTO entries (id, epoch, category, compatibility, created, expires, used, size) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.id,
                    entry.partition.epoch,
                    entry.partition.category,
                    entry.partition.compatibility,
                    entry.created_s,
                    entry.expires_s,
                    entry.created_s,
                    len(record),
                ),
            ).lastrowid
            connection.execute("INSERT INTO documents VALUES (?, ?, ?)", (row, encoded.vector, record))
