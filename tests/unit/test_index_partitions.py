"""How partitions change shape: flat, being built, graph, worn, rebuilt, gone."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.block import BLOCK_ROWS, Block
from cacheproxy.index.catalogue import Catalogue
from cacheproxy.index.guard import Guard
from cacheproxy.index.partitioned import LOOP_ROWS, PartitionedIndex
from cacheproxy.index.rows import Exact
from cacheproxy.index.upkeep import TAIL_ROWS
from tests.support.index_world import DIM, EPOCH, filled, graphs_from, partition, settled, units

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = partition()


async def test_partition_stays_flat_up_to_the_limit_and_becomes_a_graph_above() -> None:
    async with PartitionedIndex(graphs_from(50), dim=DIM, epoch=EPOCH) as index:
        filled(index, 50)
        await settled(index)
        assert index.stats().graphs == 0
        index.add(HERE, "one more", units(1, seed=9)[0])
        await settled(index)
        stats = index.stats()
        assert (stats.graphs, stats.tail, stats.live, stats.merged_rows) == (1, 0, 51, 51)


async def test_tail_beside_a_graph_is_merged_above_its_limit() -> None:
    async with PartitionedIndex(graphs_from(1000), dim=DIM, epoch=EPOCH) as index:
        filled(index, 1001)
        await settled(index)
        for i, row in enumerate(units(TAIL_ROWS + 1, seed=9)):
            assert index.stats().tail == i
            index.add(HERE, f"later{i}", row)
        await settled(index)
        assert index.stats().tail == 0


async def test_every_entry_is_found_at_every_moment_of_a_build() -> None:
    async with PartitionedIndex(graphs_from(200), dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 400)
        tails = set()
        while index.stats().due:
            tails.add(index.stats().tail)
            await asyncio.sleep(0)  # a flat search alone never gives way
            for entry_id in ("e0", "e199", "e399"):
                assert (await index.search(HERE, rows[entry_id][1], 1))[0].entry_id == entry_id
        assert len(tails) > 10  # the search really ran in between


async def test_entry_removed_or_replaced_during_a_build_does_not_come_back() -> None:
    async with PartitionedIndex(graphs_from(50), dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 300)
        turn = 0
        while index.stats().due:
            if turn < 100:
                index.remove([f"e{turn}"])
                index.add(HERE, f"e{turn + 100}", -rows[f"e{turn + 100}"][1])
                turn += 1
            await asyncio.sleep(0)
        removed, replaced = {f"e{i}" for i in range(turn)}, [f"e{i + 100}" for i in range(turn)]
        assert turn > 5
        for entry_id, (_, vector) in rows.items():
            found = {c.entry_id: c.similarity for c in await index.search(HERE, vector, 300)}
            assert not found.keys() & removed
            if entry_id in replaced:
                assert found.get(entry_id, -1.0) == pytest.approx(-1.0, abs=1e-5)


async def test_worn_graph_is_rebuilt_and_its_dropped_vectors_leave_memory() -> None:
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 400)
        await settled(index)
        index.remove([f"e{i}" for i in range(99)])
        await settled(index)
        assert index.stats().dead == 99
        index.remove(["e99", "e100"])
        await settled(index)
        stats = index.stats()
        assert (stats.rebuilds, stats.dead, stats.live) == (1, 0, 299)
        kept = index._catalogue.graphs[HERE].guard.state().vectors()
        assert len(kept) == 299
        assert not (kept == rows["e0"][1]).all(axis=1).any()
        assert (await index.search(HERE, rows["e101"][1], 1))[0].entry_id == "e101"


async def test_entry_removed_during_a_rebuild_does_not_come_back() -> None:
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 400)
        await settled(index)
        index.remove([f"e{i}" for i in range(120)])
        gone = 120
        while index.stats().rebuilds == 0:
            if gone < 150:
                index.remove([f"e{gone}", f"e{519 - gone}"])  # ahead of the copy and behind it
                gone += 1
            await asyncio.sleep(0)
        await settled(index)
        alive = {f"e{i}" for i in range(gone, 520 - gone)}
        assert gone > 125
        assert len(index) == len(alive)
        for _, vector in rows.values():
            assert {c.entry_id for c in await index.search(HERE, vector, 400)} == alive


async def test_graph_that_fails_a_search_is_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 50)
        await settled(index)
        with monkeypatch.context() as fault:
            fault.setattr(Guard, "nearest", _out_of_order)
            with pytest.raises(IndexUnavailable):
                await index.search(HERE, rows["e1"][1], 1)
        await settled(index)
        assert index.stats().rebuilds == 1
        assert (await index.search(HERE, rows["e1"][1], 1))[0].entry_id == "e1"


def _out_of_order(*_: object) -> list[tuple[int, float]]:
    raise IndexUnavailable("injected")


async def test_failed_merge_is_counted_and_the_rows_stay_searchable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        monkeypatch.setattr(Guard, "append", _out_of_order)
        rows = filled(index, 50)
        await settled(index)
        assert index.stats().failures == 1
        assert index.health() == ""
        assert (await index.search(HERE, rows["e49"][1], 1))[0].entry_id == "e49"
        monkeypatch.undo()
        elsewhere = partition("other")
        filled(index, 50, where=elsewhere)
        await settled(index)
        assert elsewhere in index._catalogue.graphs  # upkeep itself lives on


async def test_emptied_partition_leaves_nothing_behind() -> None:
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        for turn in range(5):
            filled(index, 60)
            if turn % 2:
                await settled(index)
            index.remove([f"e{i}" for i in range(60)])
            stats = index.stats()
            assert (stats.partitions, stats.graphs, stats.live, stats.tail, stats.dead) == (0, 0, 0, 0, 0)
        await settled(index)


async def test_only_the_index_thread_touches_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    for name in ("append", "nearest", "copy_to", "state"):
        real = getattr(Guard, name)

        def spied(*args: object, real: object = real) -> object:
            threads.add(threading.current_thread().name)
            assert callable(real)
            return real(*args)

        monkeypatch.setattr(Guard, name, spied)
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 200)
        await asyncio.gather(*[index.search(HERE, vector, 3) for _, vector in rows.values()])
        index.remove([f"e{i}" for i in range(90)])
        await settled(index)
    assert threads == {"index_0"}


async def test_large_tail_is_searched_off_the_loop_with_the_same_result() -> None:
    async with PartitionedIndex(graphs_from(100_000), dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, LOOP_ROWS + BLOCK_ROWS + 1)
        index.remove([f"e{i}" for i in range(0, LOOP_ROWS, 3)])
        index.add(HERE, "e0", rows["e0"][1])
        matrix = np.stack([rows[e][1] for e in rows if e in index._catalogue])
        found = await index.search(HERE, rows["e7"][1], 9)
        assert [c.similarity for c in found] == pytest.approx(sorted(matrix @ rows["e7"][1])[:-10:-1], abs=1e-6)


async def test_add_of_another_epoch_is_refused_and_search_finds_nothing() -> None:
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        other = partition(epoch="another-encoder")
        with pytest.raises(IndexUnavailable, match="epoch"):
            index.add(other, "e1", units(1)[0])
        assert await index.search(other, units(1)[0], 4) == []


async def test_closed_index_says_so_and_refuses() -> None:
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        filled(index, 60)
    assert index.health() == "the index is closed"
    with pytest.raises(IndexUnavailable, match="closed"):
        await index.search(HERE, units(1)[0], 4)
    with pytest.raises(IndexUnavailable, match="closed"):
        index.add(HERE, "e1", units(1)[0])
    await index.aclose()


async def test_stopped_upkeep_shows_in_health() -> None:
    async with PartitionedIndex(graphs_from(20), dim=DIM, epoch=EPOCH) as index:
        await index._upkeep.aclose()
        assert index.health() == "index upkeep has stopped"


@pytest.mark.parametrize("kept", [1, 40])
def test_churn_in_a_small_partition_does_not_grow_memory(kept: int) -> None:
    catalogue, rows = Catalogue(Exact(DIM)), units(2000)
    for i, row in enumerate(rows):
        catalogue.put(HERE, f"e{i}", row)
        if i >= kept:
            catalogue.drop(f"e{i - kept}")
    blocks = catalogue.shelves[HERE].blocks
    assert sum(len(block.ids) for block in blocks) <= 4 * kept
    assert len(catalogue) == kept


def test_single_entry_partition_costs_one_row() -> None:
    block = Block(Exact(384))
    block.append("e0", units(1, dim=384)[0])
    matrix = block.slice().matrix.base
    assert matrix is not None
    assert matrix.nbytes == 384 * 4


@pytest.mark.parametrize("entries", [2, 9, 10, 40, 160])
def test_small_partition_has_room_for_an_eighth_more_at_most(entries: int) -> None:
    block, rows = Block(Exact(384)), units(entries, dim=384)
    for i, row in enumerate(rows):
        block.append(f"e{i}", row)
    matrix = block.slice().matrix.base
    assert matrix is not None
    assert len(matrix) <= entries + max(1, entries // 8)


def test_dropped_flat_vector_is_erased() -> None:
    block, rows = Block(Exact(DIM)), units(2)
    for i, row in enumerate(rows):
        block.append(f"e{i}", row)
    block.drop(0)
    assert not block.slice().matrix[0].any()


def test_scan_under_way_is_not_disturbed_by_growth() -> None:
    block, rows = Block(Exact(DIM)), units(200)

    def extend(matrix: NDArray[np.float32], first: int) -> None:
        for i, row in enumerate(matrix):
            block.append(f"e{first + i}", row)

    extend(rows[:3], 0)
    view = block.slice()
    extend(rows[3:], 3)
    assert view.nearest(rows[1], 10)[0][0] == 1
    assert len(view.nearest(rows[1], 10)) == 3
