"""Damaged snapshots, a full disk, kill -9 and everything at once (reliability rows 54, 60, 65, 88)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import structlog

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index import sealed
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.index.sealed import PREFIX
from cacheproxy.index.snapshot import MANIFEST, current
from tests.support.index_child import ROWS
from tests.support.index_world import DIM, EPOCH, Rows, filled, graphs_from, partition, scan, settled, units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

HERE = partition()
GRAPHS = graphs_from(20)
ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("CACHEPROXY_TEST_KILLS", "25"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A sound snapshot and the store's rows; copy it before damaging it."""
    directory = tmp_path_factory.mktemp("whole")

    async def make() -> Rows:
        async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
            rows = filled(index, 100)
            await settled(index)
            await index.save(directory)
            return rows

    return directory, asyncio.run(make())


@pytest.fixture
def snapshot(whole: tuple[Path, Rows], tmp_path: Path) -> Path:
    return shutil.copytree(whole[0], tmp_path / "snapshot")


@pytest.fixture
def rows(whole: tuple[Path, Rows]) -> Rows:
    return whole[1]


def graph_file(snapshot: Path) -> Path:
    (found,) = snapshot.glob("*/*.graph")
    return found


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def assert_refused_and_rebuilt(snapshot: Path, rows: Rows, reasons: set[str]) -> None:
    """Start from a damaged snapshot: it is refused with a reason; the store's rows serve at once and become a graph."""
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        with structlog.testing.capture_logs() as logs:
            await index.restore(snapshot, scan(rows))
        assert {line["reason"] for line in logs if line["event"] == "snapshot_refused"} <= reasons
        stats = index.stats()
        assert (stats.snapshot_refused, stats.graphs, stats.tail) == (1, 0, len(rows))
        for _ in range(2):
            for entry_id, (_, vector) in rows.items():
                assert (await index.search(HERE, vector, 1))[0].entry_id == entry_id
            await settled(index)
        assert index.stats().graphs == 1


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


REGIONS = {
    "magic": (0, {"magic"}),
    "version": (8, {"version"}),
    "size": (12, {"truncated"}),
    "digest": (25, {"checksum"}),
    "header size": (PREFIX.size, {"checksum"}),
    "header": (PREFIX.size + 40, {"checksum"}),
    "vectors": (PREFIX.size + 4000, {"checksum"}),
    "ids": (-20, {"checksum"}),
    "last byte": (-1, {"checksum"}),
}


@pytest.mark.parametrize("region", REGIONS)
async def test_graph_file_with_one_flipped_bit_is_rebuilt_from_the_store(
    snapshot: Path, rows: Rows, region: str
) -> None:
    position, reasons = REGIONS[region]
    flip(graph_file(snapshot), position)
    await assert_refused_and_rebuilt(snapshot, rows, reasons)


@pytest.mark.parametrize("position", [0, 8, 12, 25, PREFIX.size, -1])
async def test_manifest_with_one_flipped_bit_is_rebuilt_from_the_store(
    snapshot: Path, rows: Rows, position: int
) -> None:
    flip(graph_file(snapshot).with_name(MANIFEST), position)
    await assert_refused_and_rebuilt(snapshot, rows, {"magic", "version", "truncated", "checksum"})


def test_no_flipped_bit_anywhere_gets_through(snapshot: Path) -> None:
    file = graph_file(snapshot)
    sound = file.read_bytes()
    for position in random.Random(1).sample(range(len(sound)), 400):
        content = bytearray(sound)
        content[position] ^= 1 << (position % 8)
        file.write_bytes(content)
        with pytest.raises(sealed.SnapshotRefused):
            sealed.read_sealed(file)


@pytest.mark.parametrize("keep", [0, 5, PREFIX.size, PREFIX.size + 100, 4000, -1])
async def test_truncated_snapshot_is_rebuilt_from_the_store(snapshot: Path, rows: Rows, keep: int) -> None:
    file = graph_file(snapshot)
    file.write_bytes(file.read_bytes()[:keep])
    await assert_refused_and_rebuilt(snapshot, rows, {"truncated"})


async def test_missing_graph_file_is_rebuilt_from_the_store(snapshot: Path, rows: Rows) -> None:
    graph_file(snapshot).unlink()
    await assert_refused_and_rebuilt(snapshot, rows, {"unreadable"})


async def test_snapshot_of_a_newer_version_is_rebuilt_from_the_store(
    snapshot: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "VERSION", sealed.VERSION + 1)
    await assert_refused_and_rebuilt(snapshot, rows, {"version"})


@pytest.mark.parametrize("body", [b"", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", os.urandom(5000)])
async def test_sealed_nonsense_is_refused_too(snapshot: Path, rows: Rows, body: bytes) -> None:
    file = graph_file(snapshot)
    file.unlink()
    sealed.write_sealed(file, [body])
    await assert_refused_and_rebuilt(snapshot, rows, {"header"})


async def test_leftovers_of_a_crash_are_ignored_and_swept(snapshot: Path, rows: Rows) -> None:
    sound = current(snapshot)
    assert sound is not None
    (sound / "stray").write_bytes(b"x")
    shutil.copytree(sound, snapshot / ".000000000009")
    (snapshot / "notes.txt").write_bytes(b"not ours")
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        await index.restore(snapshot, scan(rows))
        assert index.stats().snapshot_refused == 0
        await index.save(snapshot)
    assert names_in(snapshot) == {"000000000002", "notes.txt"}


@contextlib.contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """Let every write past this file size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_full_disk_fails_the_save_and_keeps_the_snapshot_before(snapshot: Path, rows: Rows) -> None:
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        await index.restore(snapshot, scan(rows))
        for i, row in enumerate(units(100, seed=3)):
            index.add(HERE, f"more{i}", row)
            rows = {**rows, f"more{i}": (HERE, row)}
        await settled(index)
        with files_limited_to(3000), pytest.raises(IndexUnavailable, match="not written"):
            await index.save(snapshot)
        assert index.health() == ""
        before = current(snapshot)
        assert before is not None
        assert before.name == "000000000001"
        await index.save(snapshot)
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        await index.restore(snapshot, scan(rows))
        assert (index.stats().live, index.stats().tail, index.stats().snapshot_refused) == (200, 0, 0)


def _save_until_killed(directory: Path, after_s: float) -> None:
    command = [sys.executable, "-m", "tests.support.index_child", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"saved\n"
        time.sleep(after_s)
        child.kill()


async def _assert_sound_after_kill(directory: Path) -> None:
    rows: Rows = {f"e{i}": (partition(f"category {i % 3}"), ROWS[i]) for i in range(600)}
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        await index.restore(directory, scan(rows))
        stats = index.stats()
        assert (stats.snapshot_refused, stats.graphs, stats.live) == (0, 3, 600)
        for entry_id, (where, vector) in rows.items():
            assert (await index.search(where, vector, 1))[0].entry_id == entry_id


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_at_any_moment_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    chance = random.Random(4)
    for _ in range(KILLS):
        _save_until_killed(tmp_path, chance.uniform(0.0, 0.3))
        asyncio.run(_assert_sound_after_kill(tmp_path))


def test_kill_during_saves_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    _save_until_killed(tmp_path, 0.05)
    asyncio.run(_assert_sound_after_kill(tmp_path))


class Storm:
    """Adds, removals, rebuilds, searches and saves on one index at once, with what must hold checked all along."""

    dim = 32
    batch = 100

    def __init__(self, index: PartitionedIndex, directory: Path) -> None:
        self.index = index
        self.directory = directory
        self.live: dict[str, NDArray[np.float32]] = {}
        self.removed: set[str] = set()
        self.chance = np.random.default_rng(7)
        self.ends_s = time.monotonic() + 3.0
        self.searches = self.hits = self.saves = 0
        self.max_lag_s = 0.0

    async def run(self) -> None:
        self.change(1500)
        async with asyncio.TaskGroup() as tasks:
            for work in (self.changes(), self.saving(), self.ticks(), *[self.searching() for _ in range(4)]):
                tasks.create_task(work)

    @property
    def on(self) -> bool:
        return time.monotonic() < self.ends_s

    def change(self, adds: int) -> None:
        for row in units(adds, dim=self.dim, seed=len(self.live) + len(self.removed)):
            name = f"e{len(self.live) + len(self.removed)}"
            self.index.add(HERE, name, row)
            self.live[name] = row

    async def changes(self) -> None:
        while self.on:
            self.change(self.batch)
            gone = self.chance.choice(list(self.live), size=self.batch, replace=False).tolist()
            self.index.remove(gone)
            for name in gone:
                del self.live[name]
            self.removed.update(gone)
            await asyncio.sleep(0.02)

    async def searching(self) -> None:
        while self.on:
            name = str(self.chance.choice(list(self.live)))
            row, removed_before = self.live[name], len(self.removed)
            gone = set(self.removed)
            found = [c.entry_id for c in await self.index.search(HERE, row, 4)]
            assert not gone.intersection(found), (removed_before, found)
            if name in self.live:
                self.searches += 1
                self.hits += bool(found) and found[0] == name
            await asyncio.sleep(0)

    async def saving(self) -> None:
        while self.on:
            await self.index.save(self.directory)
            self.saves += 1

    async def ticks(self) -> None:
        while self.on:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            self.max_lag_s = max(self.max_lag_s, time.monotonic() - before - 0.001)


@pytest.mark.quiet
async def test_searches_stay_right_and_the_loop_stays_free_while_everything_changes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with PartitionedIndex(graphs_from(256), dim=Storm.dim, epoch=EPOCH) as index:
        storm = Storm(index, tmp_path)
        await storm.run()
        await settled(index)
        stats = index.stats()
        recall = storm.hits / storm.searches
        record_property("max_loop_lag_ms", round(storm.max_lag_s * 1000, 1))
        record_property("recall", round(recall, 4))
        assert (stats.failures, stats.live) == (0, len(storm.live))
        assert stats.rebuilds >= 1
        assert storm.saves >= 2
        assert storm.searches > 100
        assert recall >= 0.98
        assert storm.max_lag_s < 0.25
        rows: Rows = {name: (HERE, row) for name, row in storm.live.items()}
    async with PartitionedIndex(graphs_from(256), dim=Storm.dim, epoch=EPOCH) as index:
        await index.restore(tmp_path, scan(rows))
        assert len(index) == len(rows)
        for name in list(storm.live)[::20]:
            found = [c.entry_id for c in await index.search(HERE, storm.live[name], 4)]
            assert not storm.removed.intersection(found)
