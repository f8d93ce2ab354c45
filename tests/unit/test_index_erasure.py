"""What is erased from the index leaves its snapshots at once, and its memory when the graph is rebuilt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cacheproxy.index.partitioned import PartitionedIndex
from tests.support.index_world import DIM, EPOCH, filled, graphs_from, partition, scan, settled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.index_world import Rows


def on_disk(directory: Path, rows: Rows) -> set[str]:
    """The entries whose vectors are in any file below a directory."""
    held = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    return {entry_id for entry_id, (_, vector) in rows.items() if vector.tobytes() in held}


async def graph_of(index: PartitionedIndex, count: int) -> Rows:
    rows = filled(index, count)
    await settled(index)
    return rows


async def test_a_scrubbed_snapshot_holds_no_erased_vector(tmp_path: Path) -> None:
    async with PartitionedIndex(graphs_from(8), dim=DIM, epoch=EPOCH) as index:
        rows = await graph_of(index, 40)
        await index.save(tmp_path)
        assert on_disk(tmp_path, rows) == set(rows)
        assert index.erase(["e3", "e4", "nobody"]) == 2
        await index.scrub(tmp_path)
        assert on_disk(tmp_path, rows).isdisjoint({"e3", "e4"})
        await settled(index)
        assert index.stats().dead == 0
        await index.save(tmp_path)
        assert on_disk(tmp_path, rows) == set(rows) - {"e3", "e4"}
        best = (await index.search(partition(), rows["e5"][1], 1))[0]
        assert best.entry_id == "e5"


async def test_removing_alone_leaves_the_vector_in_the_graph(tmp_path: Path) -> None:
    """Why erasing is more: an entry that was only removed is flagged, and written again."""
    async with PartitionedIndex(graphs_from(8), dim=DIM, epoch=EPOCH) as index:
        rows = await graph_of(index, 40)
        index.remove(["e3"])
        await index.save(tmp_path)
        assert "e3" in on_disk(tmp_path, rows)


async def test_what_need_not_be_scrubbed_rebuilds_no_graph(tmp_path: Path) -> None:
    async with PartitionedIndex(graphs_from(8), dim=DIM, epoch=EPOCH) as index:
        rows = await graph_of(index, 40)
        assert index.erase(["e3", "nobody"], scrub=False) == 1
        await index.save(tmp_path)
        assert "e3" in on_disk(tmp_path, rows)


async def test_an_erased_vector_is_gone_with_the_next_snapshot(tmp_path: Path) -> None:
    async with PartitionedIndex(graphs_from(8), dim=DIM, epoch=EPOCH) as index:
        rows = await graph_of(index, 40)
        await index.save(tmp_path)
        index.erase(["e3"])
        await index.save(tmp_path)
        assert "e3" not in on_disk(tmp_path, rows)


async def test_what_is_erased_while_its_graph_is_rebuilt_goes_too(tmp_path: Path) -> None:
    async with PartitionedIndex(graphs_from(8), dim=DIM, epoch=EPOCH) as index:
        rows = await graph_of(index, 200)
        index.erase(["e0"])
        graph = next(iter(index._catalogue.graphs.values()))
        index._renew(partition(), graph)
        async with asyncio.timeout(10):
            while graph.rebuild is None or graph.rebuild.done < 40:  # noqa: ASYNC110 - upkeep tells nobody
                await asyncio.sleep(0)
        index.erase(["e5"])
        await settled(index)
        await index.save(tmp_path)
        await settled(index)
        await index.save(tmp_path)
        assert index.stats().dead == 0
        assert on_disk(tmp_path, rows) == set(rows) - {"e0", "e5"}


async def test_an_erased_partition_leaves_nothing(tmp_path: Path) -> None:
    async with PartitionedIndex(graphs_from(8), dim=DIM, epoch=EPOCH) as index:
        rows = await graph_of(index, 40)
        await index.save(tmp_path)
        index.erase(rows)
        await index.scrub(tmp_path)
        assert on_disk(tmp_path, rows) == set()
        assert len(index) == 0


@pytest.mark.parametrize("erased", [["e1"], ["e1", "e2", "e30"]])
async def test_a_start_after_a_scrub_finds_all_the_others(tmp_path: Path, erased: list[str]) -> None:
    async with PartitionedIndex(graphs_from(8), dim=DIM, epoch=EPOCH) as index:
        rows = await graph_of(index, 40)
        index.erase(erased)
        await index.scrub(tmp_path)
    left = {entry_id: row for entry_id, row in rows.items() if entry_id not in erased}
    async with PartitionedIndex(graphs_from(8), dim=DIM, epoch=EPOCH) as index:
        await index.restore(tmp_path, scan(left))
        assert len(index) == len(left)
        for entry_id, (where, vector) in left.items():
            assert (await index.search(where, vector, 1))[0].entry_id == entry_id
