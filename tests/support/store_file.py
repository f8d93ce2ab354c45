"""The SQLite store's file: opened, filled, read and written behind the store's back."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from cacheproxy.settings import Store
from cacheproxy.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.entries import entry_id, make_entry, same

ROOT = Path(__file__).parents[2]


def store_on(file: Path, factory: type[sqlite3.Connection] = sqlite3.Connection, **limits: Any) -> SqliteStore:
    """Return a store that serves from the file, not from memory."""
    return SqliteStore(file, Store(**{"hot_bytes": 0} | limits), FakeClock(), factory=factory)


async def fill(file: Path, keys: str, padding: int = 0) -> None:
    async with store_on(file) as store:
        for key in keys:
            assert await store.put(make_entry(key, padding=padding), store.fence)


async def contents_of(store: SqliteStore, keys: str) -> str:
    """Return the keys whose entries are there, each whole."""
    found = ""
    for key in keys:
        entry = await store.get(entry_id(key))
        if entry is not None:
            assert same(entry, make_entry(key))
            found += key
    return found


def bytes_of(file: Path) -> bytes:
    return file.read_bytes()


def edit(file: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
