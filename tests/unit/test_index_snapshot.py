"""Snapshots: what is written, what is taken back, and how the store's rows overrule them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import structlog

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.index.restore import digests
from cacheproxy.index.snapshot import current
from cacheproxy.settings import Index
from tests.support.index_world import DIM, EPOCH, Rows, filled, graphs_from, partition, scan, settled, units

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheproxy.index.partitioned import IndexStats
    from cacheproxy.index.restore import Row

HERE = partition()
GRAPHS = graphs_from(20)


async def saved(directory: Path, count: int = 100) -> Rows:
    """Leave a snapshot of one graph behind."""
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, count)
        await settled(index)
        await index.save(directory)
    return rows


async def restored(directory: Path, rows: Rows, config: Index = GRAPHS) -> IndexStats:
    """Start from a snapshot, check that each row and nothing else is found; return the figures of the start."""
    async with PartitionedIndex(config, dim=DIM, epoch=EPOCH) as index:
        with structlog.testing.capture_logs():
            await index.restore(directory, scan(rows))
        stats = index.stats()
        for _ in range(2):
            assert len(index) == len(rows)
            for entry_id, (where, vector) in rows.items():
                found = {c.entry_id: c.similarity for c in await index.search(where, vector, 300)}
                assert found.keys() <= rows.keys()
                assert found[entry_id] == pytest.approx(1.0, abs=1e-5)
            await settled(index)
    return stats


async def test_snapshot_serves_again_without_building(tmp_path: Path) -> None:
    rows = await saved(tmp_path)
    stats = await restored(tmp_path, rows)
    assert (stats.graphs, stats.tail, stats.live, stats.dead) == (1, 0, 100, 0)


async def test_start_without_a_snapshot_builds_from_the_store(tmp_path: Path) -> None:
    rows: Rows = {f"e{i}": (HERE, row) for i, row in enumerate(units(100))}
    stats = await restored(tmp_path / "never written", rows)
    assert (stats.graphs, stats.tail, stats.snapshot_refused) == (0, 100, 0)


async def test_entry_that_the_store_lacks_is_dropped(tmp_path: Path) -> None:
    rows = await saved(tmp_path)
    del rows["e7"], rows["e8"]
    stats = await restored(tmp_path, rows)
    assert (stats.live, stats.dead) == (98, 2)


async def test_entry_that_the_snapshot_lacks_is_added(tmp_path: Path) -> None:
    rows = await saved(tmp_path)
    rows["new"] = (HERE, units(1, seed=9)[0])
    stats = await restored(tmp_path, rows)
    assert (stats.live, stats.tail, stats.dead) == (101, 1, 0)


async def test_stale_vector_of_a_replaced_entry_is_never_used(tmp_path: Path) -> None:
    rows = await saved(tmp_path)
    old = rows["e7"][1]
    rows["e7"] = (HERE, units(1, seed=9)[0])
    await restored(tmp_path, rows)
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        await index.restore(tmp_path, scan(rows))
        found = {c.entry_id: c.similarity for c in await index.search(HERE, old, 200)}
        assert found["e7"] == pytest.approx(float(old @ rows["e7"][1]), abs=1e-5)


async def test_entry_that_moved_to_another_partition_is_found_there_only(tmp_path: Path) -> None:
    rows = await saved(tmp_path)
    rows["e7"] = (partition("other"), rows["e7"][1])
    await restored(tmp_path, rows)


async def test_empty_store_empties_the_index(tmp_path: Path) -> None:
    await saved(tmp_path)
    stats = await restored(tmp_path, {})
    assert (stats.partitions, stats.graphs, stats.live) == (0, 0, 0)


async def test_graph_mostly_gone_from_the_store_is_rebuilt(tmp_path: Path) -> None:
    rows = await saved(tmp_path)
    few = {entry_id: rows[entry_id] for entry_id in list(rows)[:30]}
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        await index.restore(tmp_path, scan(few))
        await settled(index)
        assert (index.stats().rebuilds, index.stats().dead) == (1, 0)


async def test_bad_rows_of_a_store_are_left_out(tmp_path: Path) -> None:
    rows = await saved(tmp_path)
    bad = dict(rows)
    bad["nan"] = (HERE, np.full(DIM, np.nan, dtype=np.float32))
    bad["short"] = (HERE, units(1, dim=DIM - 1)[0])
    bad["other epoch"] = (partition(epoch="another-encoder"), units(1)[0])
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        await index.restore(tmp_path, scan(bad))
        assert len(index) == len(rows)


async def test_what_happens_during_a_start_wins_over_the_rows(tmp_path: Path) -> None:
    rows = await saved(tmp_path)
    newer = units(1, seed=9)[0]
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:

        async def slow_scan() -> AsyncIterator[Row]:
            async for row in scan(rows):
                if row[1] == "e50":
                    index.add(HERE, "e60", newer)
                    index.remove(["e70", "e3"])
                yield row

        await index.restore(tmp_path, slow_scan())
        assert len(index) == 98
        assert {"e3", "e70"}.isdisjoint(c.entry_id for c in await index.search(HERE, newer, 200))
        assert (await index.search(HERE, newer, 1))[0].similarity == pytest.approx(1.0, abs=1e-5)


async def test_failing_scan_leaves_only_confirmed_entries(tmp_path: Path) -> None:
    rows = await saved(tmp_path)

    async def broken_scan() -> AsyncIterator[Row]:
        yield HERE, "e1", rows["e1"][1]
        raise OSError("injected")

    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        with pytest.raises(OSError, match="injected"):
            await index.restore(tmp_path, broken_scan())
        assert {c.entry_id for c in await index.search(HERE, rows["e1"][1], 200)} <= {"e1"}


async def test_dropped_entries_are_not_in_a_snapshot_by_name_and_after_a_rebuild_not_at_all(tmp_path: Path) -> None:
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 100)
        await settled(index)
        await index.save(tmp_path)
        index.remove(["e11", "e12", "e13"])
        await index.save(tmp_path)
        assert b"e11" not in graph_file(tmp_path).read_bytes()
        index.remove([f"e{i}" for i in range(20, 60)])
        await settled(index)
        await index.save(tmp_path)
        assert rows["e11"][1].tobytes() not in graph_file(tmp_path).read_bytes()
        assert rows["e99"][1].tobytes() in graph_file(tmp_path).read_bytes()


def graph_file(directory: Path) -> Path:
    (found,) = directory.glob("*/*.graph")
    return found


async def test_unchanged_graph_is_linked_not_written_again(tmp_path: Path) -> None:
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 200)
        await settled(index)
        await index.save(tmp_path)
        first = graph_file(tmp_path).stat().st_ino
        index.remove(["e1"])  # one in 200: made good from the store
        await index.save(tmp_path)
        assert graph_file(tmp_path).stat().st_ino == first
        index.remove([f"e{i}" for i in range(2, 8)])
        await index.save(tmp_path)
        assert graph_file(tmp_path).stat().st_ino != first
        assert current(tmp_path) == graph_file(tmp_path).parent
    for i in range(1, 8):
        del rows[f"e{i}"]
    await restored(tmp_path, rows)


async def test_index_without_graphs_saves_an_empty_generation(tmp_path: Path) -> None:
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 5)
        await index.save(tmp_path)
    stats = await restored(tmp_path, rows)
    assert (stats.snapshot_refused, stats.live) == (0, 5)


async def test_many_partitions_are_saved_and_taken_back(tmp_path: Path) -> None:
    rows: Rows = {}
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        for turn in range(6):
            where = partition(f"category {turn}", bytes([turn]) * 32)
            for i, row in enumerate(units(10 if turn % 2 else 60, seed=turn)):
                rows[f"{turn}-{i}"] = (where, row)
                index.add(where, f"{turn}-{i}", row)
        await settled(index)
        await index.save(tmp_path)
    stats = await restored(tmp_path, rows)
    assert (stats.graphs, stats.partitions, stats.tail) == (3, 6, 30)


@pytest.mark.parametrize(
    ("config", "dim", "epoch", "reason"),
    [
        (GRAPHS, DIM, "another-encoder", "epoch"),
        (GRAPHS, DIM + 1, EPOCH, "dim"),
        (Index(flat_limit=20, m=8), DIM, EPOCH, "parameters"),
        (Index(flat_limit=20, ef_construction=50), DIM, EPOCH, "parameters"),
    ],
)
async def test_snapshot_of_other_vectors_is_refused_and_said(
    tmp_path: Path, config: Index, dim: int, epoch: str, reason: str
) -> None:
    await saved(tmp_path)
    async with PartitionedIndex(config, dim=dim, epoch=epoch) as index:
        with structlog.testing.capture_logs() as logs:
            await index.restore(tmp_path, scan({}))
        assert [line["reason"] for line in logs if line["event"] == "snapshot_refused"] == [reason]
        assert index.stats().snapshot_refused == 1
        assert index.health() == ""


async def test_save_to_a_place_that_cannot_be_written_is_a_typed_failure(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    async with PartitionedIndex(GRAPHS, dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 60)
        with pytest.raises(IndexUnavailable, match="not written"):
            await index.save(blocked)
        await settled(index)
        assert (await index.search(HERE, rows["e1"][1], 1))[0].entry_id == "e1"


def test_digest_sees_every_bit() -> None:
    row = units(1, dim=384)
    for position in range(384):
        for bit in (0, 17, 31):
            altered = row.copy()
            altered.view(np.uint32)[0, position] ^= np.uint32(1 << bit)
            assert digests(altered)[0] != digests(row)[0]
    assert (digests(np.repeat(row, 3000, axis=0)) == digests(row)[0]).all()
