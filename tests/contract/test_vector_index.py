"""What every VectorIndex promises, over flat partitions, settled graphs and graphs that are still being built.

With vectors that int8 codes hold exactly, so that an index of codes must keep the very same promises; how far off it is
with others is told in tests/unit/test_index_coded.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.index.spaces import Spaces
from tests.support.index_world import DIM, EPOCH, graphs_from, levels, partition, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from numpy.typing import NDArray

    from cacheproxy.model import Partition
    from cacheproxy.ports import VectorIndex

HERE = partition()


@pytest.fixture(params=["flat", "graph", "graph under way", "spaces", "int8 flat", "int8 graph", "int8 under way"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[tuple[VectorIndex, Callable[[], Awaitable[None]]]]:
    """An index, and a wait that lets background work finish where the configuration asks for it."""
    if request.param == "spaces":
        async with Spaces(graphs_from(4), dim=DIM, base=EPOCH) as spaces:
            yield spaces, lambda: settled(spaces.serving.index)
        return
    coded, flat = request.param.startswith("int8"), request.param.endswith("flat")
    config = graphs_from(10_000 if flat else 4, vectors="int8" if coded else "float32")
    async with PartitionedIndex(config, dim=DIM, epoch=EPOCH) as index:

        async def settle() -> None:
            if request.param.endswith("graph"):
                await settled(index)

        yield index, settle


@pytest.fixture
def index(world: tuple[VectorIndex, Callable[[], Awaitable[None]]]) -> VectorIndex:
    return world[0]


@pytest.fixture
def settle(world: tuple[VectorIndex, Callable[[], Awaitable[None]]]) -> Callable[[], Awaitable[None]]:
    return world[1]


def add_all(index: VectorIndex, rows: NDArray[np.float32]) -> None:
    for i, row in enumerate(rows):
        index.add(HERE, f"e{i}", row)


async def test_unknown_partition_has_no_candidates(index: VectorIndex) -> None:
    assert await index.search(HERE, levels(1)[0], 4) == []


async def test_added_entry_is_found_at_once(index: VectorIndex) -> None:
    for i, row in enumerate(levels(40)):
        index.add(HERE, f"e{i}", row)
        best = (await index.search(HERE, row, 1))[0]
        assert best.entry_id == f"e{i}"
        assert best.similarity == pytest.approx(1.0, abs=1e-5)


async def test_candidates_are_the_closest_by_cosine_closest_first(
    index: VectorIndex, settle: Callable[[], Awaitable[None]]
) -> None:
    rows, question = levels(60), levels(1, seed=9)[0]
    add_all(index, rows)
    await settle()
    found = await index.search(HERE, question, 5)
    cosines = rows @ question
    assert [c.entry_id for c in found] == [f"e{i}" for i in np.argsort(-cosines)[:5]]
    assert [c.similarity for c in found] == pytest.approx(sorted(cosines, reverse=True)[:5], abs=1e-5)


async def test_asking_for_more_than_there_is_gives_all_there_is(
    index: VectorIndex, settle: Callable[[], Awaitable[None]]
) -> None:
    rows = levels(20)
    add_all(index, rows)
    await settle()
    assert {c.entry_id for c in await index.search(HERE, rows[0], 64)} == {f"e{i}" for i in range(20)}
    assert await index.search(HERE, rows[0], 0) == []


async def test_opposite_vector_has_similarity_minus_one(
    index: VectorIndex, settle: Callable[[], Awaitable[None]]
) -> None:
    rows = np.repeat(levels(1), 10, axis=0)
    add_all(index, rows)
    await settle()
    assert all(-1.0 <= c.similarity <= -0.9999 for c in await index.search(HERE, -rows[0], 10))


async def test_adding_an_id_again_replaces_its_vector(
    index: VectorIndex, settle: Callable[[], Awaitable[None]]
) -> None:
    rows = levels(30)
    add_all(index, rows)
    await settle()
    index.add(HERE, "e7", -rows[7])
    assert len(index) == 30
    assert (await index.search(HERE, -rows[7], 1))[0].entry_id == "e7"
    await settle()
    assert {c.entry_id: c.similarity for c in await index.search(HERE, rows[7], 30)}["e7"] == pytest.approx(
        -1, abs=1e-5
    )


async def test_adding_an_id_elsewhere_moves_it(index: VectorIndex, settle: Callable[[], Awaitable[None]]) -> None:
    rows, there = levels(10), partition("other")
    add_all(index, rows)
    await settle()
    index.add(there, "e3", rows[3])
    assert [c.entry_id for c in await index.search(there, rows[3], 10)] == ["e3"]
    assert "e3" not in {c.entry_id for c in await index.search(HERE, rows[3], 10)}
    assert len(index) == 10


async def test_removed_entries_are_never_returned(index: VectorIndex, settle: Callable[[], Awaitable[None]]) -> None:
    rows = levels(40)
    add_all(index, rows)
    await settle()
    gone = {f"e{i}" for i in range(0, 40, 2)}
    index.remove(gone)
    for _ in range(2):  # at once, and after background work has caught up
        assert len(index) == 20
        for row in rows:
            found = {c.entry_id for c in await index.search(HERE, row, 40)}
            assert not found & gone
            assert len(found) == 20
        await settle()


async def test_removing_all_and_unknown_ids_leaves_an_empty_partition(
    index: VectorIndex, settle: Callable[[], Awaitable[None]]
) -> None:
    rows = levels(20)
    add_all(index, rows)
    await settle()
    index.remove([f"e{i}" for i in range(25)])
    index.remove(["e1", "never seen"])
    assert len(index) == 0
    assert await index.search(HERE, rows[0], 4) == []
    await settle()
    index.add(HERE, "e1", rows[1])
    assert [c.entry_id for c in await index.search(HERE, rows[1], 4)] == ["e1"]


@pytest.mark.parametrize(
    "there",
    [partition("other"), partition(compatibility=b"d" * 32), partition("other", b"d" * 32)],
    ids=["category", "compatibility", "both"],
)
async def test_partitions_never_meet(
    index: VectorIndex, settle: Callable[[], Awaitable[None]], there: Partition
) -> None:
    rows = levels(20)
    for i, row in enumerate(rows):
        index.add(HERE, f"here{i}", row)
        index.add(there, f"there{i}", row)
    await settle()
    for row in rows:
        assert all(c.entry_id.startswith("here") for c in await index.search(HERE, row, 64))
        assert all(c.entry_id.startswith("there") for c in await index.search(there, row, 64))


BAD_VECTORS = {
    "shorter": levels(1, dim=DIM - 9)[0],
    "longer": levels(1, dim=2 * DIM)[0],
    "two-dimensional": levels(1),
    "float64": levels(1)[0].astype(np.float64),
    "big-endian": levels(1)[0].astype(">f4"),
    "nan": np.full(DIM, np.nan, dtype=np.float32),
    "one nan": np.concatenate([levels(1, dim=DIM - 1)[0], np.array([np.nan], dtype=np.float32)]),
    "infinite": np.full(DIM, np.inf, dtype=np.float32),
    "huge": np.full(DIM, 3e38, dtype=np.float32),
    "zero": np.zeros(DIM, dtype=np.float32),
    "not unit": 1.1 * levels(1)[0],
    "list": levels(1)[0].tolist(),
    "none": None,
}


@pytest.mark.parametrize("name", BAD_VECTORS)
async def test_bad_vectors_are_refused_and_change_nothing(
    index: VectorIndex, settle: Callable[[], Awaitable[None]], name: str
) -> None:
    bad, rows = BAD_VECTORS[name], levels(20)
    add_all(index, rows)
    await settle()
    with pytest.raises(IndexUnavailable):
        await index.search(HERE, bad, 4)
    with pytest.raises(IndexUnavailable):
        index.add(HERE, "bad", bad)
    with pytest.raises(IndexUnavailable):
        index.add(HERE, "e3", bad)
    assert len(index) == 20
    assert [(await index.search(HERE, row, 1))[0].entry_id for row in rows] == [f"e{i}" for i in range(20)]


async def test_caller_may_reuse_its_array(index: VectorIndex) -> None:
    rows = levels(2)
    scratch = rows[0].copy()
    index.add(HERE, "first", scratch)
    scratch[:] = rows[1]
    index.add(HERE, "second", scratch)
    assert (await index.search(HERE, rows[0], 1))[0].entry_id == "first"


async def test_cancelled_search_leaves_the_index_usable(
    index: VectorIndex, settle: Callable[[], Awaitable[None]]
) -> None:
    rows = levels(40)
    add_all(index, rows)
    await settle()
    searches = [asyncio.ensure_future(index.search(HERE, row, 4)) for row in rows]
    await asyncio.sleep(0)
    for search in searches[::2]:
        search.cancel()
    index.remove(["e0"])
    await asyncio.gather(*searches, return_exceptions=True)
    assert (await index.search(HERE, rows[1], 1))[0].entry_id == "e1"
    assert len(await index.search(HERE, rows[0], 64)) == 39


async def test_open_index_is_healthy(index: VectorIndex) -> None:
    assert index.health() == ""
