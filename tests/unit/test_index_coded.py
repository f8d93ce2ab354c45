"""Vectors as int8 codes: how far a cosine may be off, what is on disk, and what happens when the setting changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.guard import Guard, Shape
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.index.reduced import Reduced, axes_of
from cacheproxy.index.rows import Coded, worst_error
from tests.support.index_world import DIM, EPOCH, filled, graphs_from, partition, scan, settled, units

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.index.partitioned import IndexStats
    from cacheproxy.settings import Index
    from tests.support.index_world import Rows

SHAPE = Shape(dim=DIM, m=8, ef_construction=50, ef_search=32, components=6)
CODED, PLAIN = graphs_from(20, vectors="int8"), graphs_from(20)
components = arrays(np.float32, 24, elements=st.floats(-1, 1, width=32)).filter(lambda row: np.abs(row).max() > 1e-3)


def unit(row: NDArray[np.float32]) -> NDArray[np.float32]:
    return (row / np.linalg.norm(row)).astype(np.float32)


@given(kept=components, asked=components)
def test_a_cosine_is_off_by_no_more_than_the_bound(kept: NDArray[np.float32], asked: NDArray[np.float32]) -> None:
    form, row, question = Coded(24), unit(kept)[None], unit(asked)
    found = form.cosines(form.kept(row), question)[0]
    assert abs(found - float(row[0].astype(np.float64) @ question)) <= worst_error(row)[0]
    # The worst question there is: along what the code leaves out.
    left_out = row[0].astype(np.float64) - form.vectors(form.kept(row))[0]
    assert np.linalg.norm(left_out) <= worst_error(row)[0]


@given(kept=components)
def test_coding_what_was_coded_changes_nothing(kept: NDArray[np.float32]) -> None:
    form = Coded(24)
    once = form.kept(unit(kept)[None])
    again = form.kept(form.vectors(once))
    assert again.tobytes() == once.tobytes()
    assert np.linalg.norm(form.vectors(once)[0]) == pytest.approx(1.0, abs=1e-6)


def test_a_vector_is_coded_alike_alone_and_among_others() -> None:
    form, rows = Coded(384), units(300, dim=384)
    assert b"".join(form.kept(row[None]).tobytes() for row in rows) == form.kept(rows).tobytes()
    assert form.dtype.itemsize == 388


async def test_a_vector_no_longer_than_the_components_stays_as_it_is() -> None:
    async with PartitionedIndex(graphs_from(20, vectors="int8", components=DIM), dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 10)
        question = units(1, seed=9)[0]
        found = await index.search(partition(), question, 10)
    cosines = sorted((float(row @ question) for _, row in rows.values()), reverse=True)
    assert [one.similarity for one in found] == pytest.approx(cosines, abs=1e-7)


async def saved(directory: Path, config: Index) -> Rows:
    async with PartitionedIndex(config, dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 100)
        await settled(index)
        await index.save(directory)
    return rows


async def restored(directory: Path, rows: Rows, config: Index) -> IndexStats:
    """Start, check that each row is found, before and after upkeep; return the figures of the start."""
    async with PartitionedIndex(config, dim=DIM, epoch=EPOCH) as index:
        with structlog.testing.capture_logs():
            await index.restore(directory, scan(rows))
        stats = index.stats()
        for _ in range(2):
            for entry_id, (where, vector) in rows.items():
                found = await index.search(where, vector, 1)
                assert [one.entry_id for one in found] == [entry_id]
                assert found[0].similarity == pytest.approx(1.0, abs=worst_error(vector[None])[0])
            await settled(index)
        assert index.stats().live == len(rows)
    return stats


async def test_snapshot_of_codes_serves_again_without_building(tmp_path: Path) -> None:
    stats = await restored(tmp_path, await saved(tmp_path, CODED), CODED)
    assert (stats.graphs, stats.tail, stats.live, stats.dead) == (1, 0, 100, 0)
    assert stats.snapshot_refused == 0


@pytest.mark.parametrize(
    ("before", "after"), [(PLAIN, CODED), (CODED, PLAIN), (CODED, graphs_from(20, vectors="int8", components=9))]
)
async def test_a_changed_setting_builds_graphs_anew_from_the_store(tmp_path: Path, before: Index, after: Index) -> None:
    stats = await restored(tmp_path, await saved(tmp_path, before), after)
    assert (stats.graphs, stats.tail, stats.snapshot_refused) == (0, 100, 1)


async def test_an_entry_whose_vector_changed_is_not_taken_over(tmp_path: Path) -> None:
    rows = await saved(tmp_path, CODED)
    rows["e7"] = (partition(), units(1, seed=5)[0])
    stats = await restored(tmp_path, rows, CODED)
    assert (stats.tail, stats.live) == (1, 100)


async def test_codes_of_the_erased_leave_the_disk(tmp_path: Path) -> None:
    async with PartitionedIndex(CODED, dim=DIM, epoch=EPOCH) as index:
        rows = filled(index, 60)
        await settled(index)
        await index.save(tmp_path)
        assert on_disk(tmp_path, rows) == set(rows)
        index.erase(["e3", "e4"])
        await index.scrub(tmp_path)
        await settled(index)
        await index.save(tmp_path)
        assert on_disk(tmp_path, rows) == set(rows) - {"e3", "e4"}


def on_disk(directory: Path, rows: Rows) -> set[str]:
    form, held = Coded(DIM), b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    return {entry_id for entry_id, (_, vector) in rows.items() if form.kept(vector[None])["codes"].tobytes() in held}


def reduced(count: int) -> Reduced:
    graph = Reduced(SHAPE, axes_of(units(count), SHAPE.components), capacity=4)
    for start in range(0, count, 4):
        graph.append(units(count)[start : start + 4], range(start, min(start + 4, count)))
    return graph


def test_similarity_is_of_the_whole_vector_not_of_its_components() -> None:
    rows, question = units(200), units(1, seed=5)[0]
    found = reduced(200).nearest(question, 10)
    assert [cosine for _, cosine in found] == sorted((cosine for _, cosine in found), reverse=True)
    for label, cosine in found:
        assert abs(cosine - float(rows[label] @ question)) <= worst_error(rows[label : label + 1])[0]


def test_copy_has_the_live_ones_under_their_labels_with_the_same_codes() -> None:
    graph, rows = reduced(3000), units(3000)
    for label in range(0, 3000, 3):
        graph.drop(label)
    copy = graph.successor(2000)
    assert graph.copy_to(copy, range(3000)) == copy.live == 2000
    for label in (1, 1022, 1024, 2999):
        assert copy.nearest(rows[label], 1) == graph.nearest(rows[label], 1)
        assert copy.nearest(rows[label], 1)[0][0] == label


def test_graph_without_anything_live_has_no_neighbours_and_a_successor() -> None:
    graph = reduced(8)
    for label in range(8):
        graph.drop(label)
    assert graph.nearest(units(1)[0], 3) == []
    assert graph.successor(4).count == 0


def test_state_of_another_kind_is_refused() -> None:
    state, plain = reduced(20).state(), Guard(SHAPE.graph)
    with pytest.raises(IndexUnavailable, match="vectors"):
        Guard(SHAPE.graph, state=state)
    plain.append(units(20, dim=SHAPE.components), range(20))
    with pytest.raises(IndexUnavailable, match="vectors"):
        Reduced(SHAPE, axes_of(units(20), 6), state=plain.state())


def test_vector_without_a_share_in_any_component_is_found_by_its_codes() -> None:
    axes = np.eye(DIM, dtype=np.float32)[: SHAPE.components]
    graph, rows = Reduced(SHAPE, axes), np.eye(DIM, dtype=np.float32)
    graph.append(rows, range(DIM))
    for label, row in enumerate(rows):
        [(found, cosine)] = graph.nearest(row, 1)
        assert found == label
        assert cosine == pytest.approx(1.0)


def test_bad_rows_are_refused_whole() -> None:
    graph, rows = reduced(20), units(3, seed=1)
    rows[1] = np.nan
    with pytest.raises(IndexUnavailable, match="unit norm"):
        graph.append(rows, range(20, 23))
    assert graph.count == 20
    graph.append(units(3, seed=1), range(20, 23))
    assert graph.nearest(units(3, seed=1)[2], 1)[0][0] == 22
