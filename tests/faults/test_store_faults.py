"""The SQLite store and its file: who may open it, how it closes, and a disk that is full, fails or is locked."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from cacheproxy.errors import ConfigError, StoreUnavailable
from cacheproxy.settings import Store
from cacheproxy.store.schema import APPLICATION_ID
from cacheproxy.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.entries import EPOCH, entry_id, make_entry, same
from tests.support.store_file import ROOT, bytes_of, contents_of, edit, fill, store_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cacheproxy.model import Entry


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "e.db"


@dataclass(slots=True)
class Faults:
    """Makes statements of connections it provides fail as SQLite would: those from `first` on, as many as `count`."""

    code: str = "SQLITE_IOERR"
    first: int | None = None
    count: int = 1
    seen: int = field(default=0, init=False)

    def factory(self) -> type[sqlite3.Connection]:
        faults = self

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> sqlite3.Cursor:
                faults.step()
                return super().execute(*args)

            def executemany(self, *args: Any) -> sqlite3.Cursor:
                faults.step()
                return super().executemany(*args)

        return Connection

    def step(self) -> None:
        self.seen += 1
        if self.first is not None and self.first <= self.seen < self.first + self.count:
            failure = sqlite3.OperationalError("injected")
            failure.sqlite_errorcode = getattr(sqlite3, self.code)
            failure.sqlite_errorname = self.code
            raise failure

    def fail_from_now(self, code: str, count: int = 1_000_000) -> None:
        self.code, self.first, self.count = code, self.seen + 1, count

    def stop(self) -> None:
        self.first = None


# --- who may open the file ---


@contextlib.contextmanager
def _other_owner(file: Path) -> Iterator[int]:
    """Run a process that holds the file, and yield its number."""
    command = [sys.executable, "-m", "tests.support.store_child", str(file), "hold"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        yield child.pid
        child.kill()


async def test_a_second_process_on_the_same_file_is_refused_until_the_first_ends(file: Path) -> None:
    with _other_owner(file) as owner, pytest.raises(ConfigError, match=f"in use by process {owner}"):
        await store_on(file).__aenter__()
    async with store_on(file) as store:
        assert store.health() == ""


async def test_a_second_store_of_this_process_is_refused_and_harms_nothing(file: Path) -> None:
    async with store_on(file) as store:
        with pytest.raises(ConfigError, match="one process owns a store file"):
            await store_on(file).__aenter__()
        assert await store.put(make_entry("a"), store.fence)
    async with store_on(file) as store:
        assert await contents_of(store, "a") == "a"


async def test_a_newer_schema_is_refused_and_left_as_it_is(file: Path) -> None:
    await fill(file, "a")
    edit(file, "PRAGMA user_version = 99")
    before = bytes_of(file)
    with pytest.raises(ConfigError, match="schema version 99"):
        await store_on(file).__aenter__()
    assert bytes_of(file) == before


@pytest.mark.parametrize("application_id", [0, 12345])
async def test_somebody_elses_database_is_refused_and_left_as_it_is(file: Path, application_id: int) -> None:
    edit(file, "CREATE TABLE letters (body TEXT)", f"PRAGMA application_id = {application_id}")
    before = bytes_of(file)
    with pytest.raises(ConfigError, match="another application"):
        await store_on(file).__aenter__()
    assert bytes_of(file) == before


async def test_a_directory_and_an_unusable_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        await store_on(tmp_path).__aenter__()
    (tmp_path / "plain").touch()
    with pytest.raises(ConfigError, match="--data-dir"):
        await store_on(tmp_path / "plain" / "e.db").__aenter__()


async def test_its_files_are_for_the_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "new" / "e.db"
    async with store_on(file) as store:
        await store.put(make_entry("a"), store.fence)
        names = {path.name: path.stat().st_mode & 0o777 for path in file.parent.iterdir()}
    assert set(names) == {"e.db", "e.db-wal", "e.db-shm", "e.db.lock", "e.db.ballast"}
    assert set(names.values()) == {0o600}
    assert file.parent.stat().st_mode & 0o777 == 0o700


# --- open and close ---


async def test_closing_folds_the_log_into_the_file(file: Path) -> None:
    await fill(file, "abc")
    assert not file.with_name("e.db-wal").exists()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (3,)
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


async def test_closing_finishes_what_was_queued(file: Path) -> None:
    async with store_on(file) as store:
        puts = [asyncio.create_task(store.put(make_entry(key), store.fence)) for key in "abc"]
        await asyncio.sleep(0)
    assert await asyncio.gather(*puts) == [True] * 3
    async with store_on(file) as store:
        assert await contents_of(store, "abc") == "abc"


@pytest.mark.parametrize("steps", range(1, 6))
async def test_a_cancelled_close_still_lets_the_next_owner_in(file: Path, steps: int) -> None:
    store = store_on(file)
    await store.__aenter__()
    assert await store.put(make_entry("a"), store.fence)
    late = asyncio.create_task(store.put(make_entry("b"), store.fence))
    closing = asyncio.create_task(store.__aexit__())
    for _ in range(steps):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, late, return_exceptions=True)
    async with await _opened_soon(file) as reopened:
        assert "a" in await contents_of(reopened, "ab")


@pytest.mark.parametrize("steps", range(3))
async def test_a_cancelled_opening_leaves_the_file_free(file: Path, steps: int) -> None:
    opening = asyncio.create_task(store_on(file).__aenter__())
    for _ in range(steps):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    async with await _opened_soon(file) as store:
        assert await store.put(make_entry("a"), store.fence)


async def _opened_soon(file: Path) -> _Opened:
    for _ in range(500):
        with contextlib.suppress(ConfigError):
            return _Opened(await store_on(file).__aenter__())
        await asyncio.sleep(0.01)
    raise AssertionError("the file stayed locked")


@dataclass(frozen=True, slots=True)
class _Opened:
    """A store that was entered already."""

    store: SqliteStore

    async def __aenter__(self) -> SqliteStore:
        return self.store

    async def __aexit__(self, *exc: object) -> None:
        await self.store.__aexit__()


async def test_outside_its_block_a_store_is_unavailable(file: Path) -> None:
    store = store_on(file, hot_bytes=1_000_000)
    assert "not open" in store.health()
    async with store:
        await store.put(make_entry("a"), store.fence)
    for call in (
        store.get(entry_id("a")),
        store.put(make_entry("a"), store.fence),
        store.purge([]),
        store.sweep(),
        anext(store.scan(EPOCH)),
    ):
        with pytest.raises(StoreUnavailable, match="not open"):
            await call


async def test_uses_are_remembered_over_a_restart(file: Path) -> None:
    clock = FakeClock()
    async with SqliteStore(file, Store(), clock) as store:
        for key in "abc":
            clock.advance(1)
            await store.put(make_entry(key), store.fence)
        clock.advance(1)
        await store.get(entry_id("a"))
    async with SqliteStore(file, Store(max_entries=1), clock) as store:
        assert await store.sweep() == [entry_id("b"), entry_id("c")]


# --- a disk that is full, fails or is locked ---


async def _assert_recovers(store: SqliteStore) -> None:
    assert await store.put(make_entry("later"), store.fence)
    assert store.health() == ""


@pytest.mark.parametrize("code", ["SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_BUSY", "SQLITE_CORRUPT"])
async def test_a_failing_disk_makes_calls_fail_typed_and_health_say_so(file: Path, code: str) -> None:
    faults = Faults()
    async with store_on(file, faults.factory()) as store:
        await store.put(make_entry("a"), store.fence)
        faults.fail_from_now(code)
        for call in (store.get(entry_id("a")), store.put(make_entry("b"), store.fence), store.sweep()):
            with pytest.raises(StoreUnavailable, match=code):
                await call
        with pytest.raises(StoreUnavailable, match=code):
            await anext(store.scan(EPOCH))
        assert code in store.health()
        faults.stop()
        assert await contents_of(store, "ab") == "a"
        assert await store.put(make_entry("b"), store.fence)
        assert await contents_of(store, "ab") == "ab"
        # Damage is not cured by one good call: the file is checked whole when it is opened next.
        assert ("damaged" in store.health()) == (code == "SQLITE_CORRUPT")
    async with store_on(file) as store:
        assert await contents_of(store, "ab") == "ab"
        assert store.quarantined == 0


async def test_a_failing_disk_is_logged_once_when_it_begins_and_once_when_it_ends(file: Path) -> None:
    faults = Faults()
    with structlog.testing.capture_logs() as logs:
        async with store_on(file, faults.factory()) as store:
            faults.fail_from_now("SQLITE_FULL")
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await store.put(make_entry("a"), store.fence)
            faults.stop()
            for _ in range(3):
                await store.put(make_entry("a"), store.fence)
    assert [(event["event"], event["operation"]) for event in logs] == [
        ("store_degraded", "write"),
        ("store_recovered", "write"),
    ]
    assert "what is a?" not in str(logs)


async def test_what_is_held_in_memory_is_served_while_the_disk_fails(file: Path) -> None:
    faults = Faults()
    async with store_on(file, faults.factory(), hot_bytes=1_000_000) as store:
        await store.put(make_entry("a"), store.fence)
        faults.fail_from_now("SQLITE_IOERR")
        assert same(await store.get(entry_id("a")), make_entry("a"))
        faults.stop()


async def test_a_full_file_refuses_puts_serves_reads_and_recovers(file: Path) -> None:
    async with store_on(file) as store:
        await store.put(make_entry("a"), store.fence)
        _limit_pages(store, 40)
        with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
            await store.put(make_entry("big", padding=1_000_000), store.fence)
        assert "make room" in store.health()
        assert await contents_of(store, "a") == "a"
        assert len(store) == 1
        _limit_pages(store, 1_000_000)
        await _assert_recovers(store)


async def test_one_entry_too_big_for_the_disk_does_not_fail_its_whole_group(file: Path) -> None:
    async with store_on(file) as store:
        await store.put(make_entry("a"), store.fence)
        _limit_pages(store, 40)
        puts = [store.put(make_entry(key, padding=1_000_000 if key == "c" else 0), store.fence) for key in "bcd"]
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        assert [outcome is True for outcome in outcomes] == [True, False, True]
        assert await contents_of(store, "abd") == "abd"
        assert len(store) == 3


async def test_a_disk_that_takes_no_more_bytes_degrades_and_recovers(file: Path) -> None:
    async with store_on(file) as store:
        await store.put(make_entry("a"), store.fence)
        with _file_size_limit(200_000):
            with pytest.raises(StoreUnavailable, match="disk"):
                await store.put(make_entry("big", padding=1_000_000), store.fence)
            assert store.health()
            assert await contents_of(store, "a") == "a"
        await _assert_recovers(store)
    async with store_on(file) as store:
        assert store.quarantined == 0
        assert await contents_of(store, "a") == "a"


async def test_what_was_purged_while_the_disk_failed_is_never_served_and_removed_with_the_next_write(
    file: Path,
) -> None:
    faults = Faults()
    async with store_on(file, faults.factory(), hot_bytes=1_000_000) as store:
        for key in "abc":
            await store.put(make_entry(key), store.fence)
        fence = store.fence
        faults.fail_from_now("SQLITE_FULL")
        with pytest.raises(StoreUnavailable):
            await store.purge([entry_id("a"), entry_id("b")])
        assert store.fence > fence
        assert not await store.put(make_entry("a", version=1), fence)
        assert await store.get(entry_id("a")) is None
        faults.stop()
        assert await contents_of(store, "abc") == "c"
        assert [id_ async for _, id_, _ in store.scan(EPOCH)] == [entry_id("c")]
        assert await store.put(make_entry("b", version=1), store.fence)  # a new fill of a purged id is welcome
        assert same(await store.get(entry_id("b")), make_entry("b", version=1))
        assert len(store) == 2
    async with store_on(file) as store:
        assert await store.get(entry_id("a")) is None
        assert same(await store.get(entry_id("b")), make_entry("b", version=1))
        assert store.fence > fence


async def test_a_file_locked_by_another_program_fails_within_the_timeout_and_recovers(file: Path) -> None:
    async with store_on(file, busy_timeout_ms=20) as store:
        await store.put(make_entry("a"), store.fence)
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with asyncio.timeout(5):
                with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
                    await store.put(make_entry("b"), store.fence)
            assert await contents_of(store, "ab") == "a"
            other.execute("ROLLBACK")
        await _assert_recovers(store)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
async def test_failing_any_statement_leaves_every_call_done_or_undone(tmp_path: Path, count: int) -> None:
    """SQLite's own method: fail the Nth operation for N = 1, 2, 3 ... until a run meets no failure."""
    for first in range(1, 500):
        faults = Faults(first=first, count=count)
        file = tmp_path / f"{first}.db"
        model: dict[str, Entry] = {}
        with contextlib.suppress(StoreUnavailable):
            async with store_on(file, faults.factory()) as store:
                await _scenario(store, model)
        faults.stop()
        async with store_on(file) as store:
            assert store.quarantined == 0
            for key in "abcd":
                assert same(await store.get(entry_id(key)), model.get(key)), (first, key)
            assert len(store) == len(model)
            assert store.corrupt_records == 0
        if faults.seen < first:
            return
    raise AssertionError("the scenario never ran to its end")


async def _scenario(store: SqliteStore, model: dict[str, Entry]) -> None:
    """Call a store as a cache would; `model` follows what it acknowledged, and reads must agree with it."""
    for key, version in (("a", 0), ("b", 0), ("a", 1), ("c", 0)):
        entry = make_entry(key, version=version)
        with contextlib.suppress(StoreUnavailable):
            assert await store.put(entry, store.fence)
            model[key] = entry
    with contextlib.suppress(StoreUnavailable):
        await store.purge([entry_id("b")])
    model.pop("b", None)
    for key in "abc":
        with contextlib.suppress(StoreUnavailable):
            assert same(await store.get(entry_id(key)), model.get(key))
    with contextlib.suppress(StoreUnavailable):
        assert await store.sweep() == []
    await store.put(make_entry("d"), store.fence)
    model["d"] = make_entry("d")


def _limit_pages(store: SqliteStore, pages: int) -> None:
    """Let SQLite itself say that the disk is full."""
    store._opened().writer.execute(f"PRAGMA max_page_count = {pages}")


@contextlib.contextmanager
def _file_size_limit(size_bytes: int) -> Iterator[None]:
    """Make writes of this process beyond an offset fail, as a full disk would (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
