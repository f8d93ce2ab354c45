"""A file of the first version is opened, served and swept by this one."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from cacheproxy import settings
from cacheproxy.store.codec import encode
from cacheproxy.store.schema import MIGRATIONS, migrate
from cacheproxy.store.sqlite import SqliteStore
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
