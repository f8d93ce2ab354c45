"""Spaces: each answers in its own epoch or not at all, and one takes another's place while everything goes on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.space import BATCH_ROWS
from cacheproxy.index.spaces import Spaces
from tests.support.heads import rotation
from tests.support.index_world import DIM, EPOCH, graphs_from, partition, scan, settled, units

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheproxy.index.restore import Row

HEAD = rotation(DIM, seed=3, k=DIM // 2)
HEADED = f"{EPOCH}+0123456789ab"
ROWS = units(600)
HERE = partition()
KEPT: dict[str, Row] = {f"e{at}": (HERE, f"e{at}", row) for at, row in enumerate(ROWS)}


def spaces(*, headed: bool = False, flat_limit: int = 10_000) -> Spaces:
    return Spaces(graphs_from(flat_limit), dim=DIM, base=EPOCH, head=(HEADED, HEAD) if headed else None)


def rows_of(count: int) -> AsyncIterator[Row]:
    return scan({entry_id: (where, row) for entry_id, (where, _, row) in list(KEPT.items())[:count]})


def exact(vector: np.ndarray, k: int, count: int) -> list[str]:
    cosines = HEAD.project(ROWS[:count]) @ HEAD.project(vector)
    return [f"e{at}" for at in np.argsort(-cosines)[:k]]


async def found(index: Spaces, vector: np.ndarray, epoch: str, k: int = 4) -> list[str]:
    return [one.entry_id for one in await index.search(replace(HERE, epoch=epoch), vector, k)]


async def test_a_head_tells_what_is_near() -> None:
    async with spaces(headed=True) as index:
        for where, entry_id, row in list(KEPT.values())[:200]:
            index.add(where, entry_id, row)
        asked = units(1, seed=9)[0]
        assert await found(index, asked, HEADED) == exact(asked, 4, 200)
        [best] = await index.search(replace(HERE, epoch=HEADED), asked, 1)
        near = index.alike(ROWS[int(best.entry_id[1:])], asked, HEADED)
        assert best.similarity == pytest.approx(near, abs=1e-5)


async def test_a_search_is_answered_in_the_epoch_it_names_or_not_at_all() -> None:
    async with spaces(headed=True) as index:
        index.add(HERE, "e0", ROWS[0])
        assert await found(index, ROWS[0], HEADED) == ["e0"]
        assert await found(index, ROWS[0], EPOCH) == []
        assert index.alike(ROWS[0], ROWS[0], EPOCH) == -1.0
        assert index.alike(ROWS[0], ROWS[0], HEADED) == pytest.approx(1.0)


@pytest.mark.parametrize("headed", [False, True])
async def test_only_the_encoders_vectors_are_taken(headed: bool) -> None:
    async with spaces(headed=headed) as index:
        for wrong in (HEAD.project(ROWS[0]), ROWS[0] * 2, ROWS[0].astype(np.float64)):
            with pytest.raises(IndexUnavailable):
                index.add(HERE, "e0", wrong)
            with pytest.raises(IndexUnavailable):
                await index.search(replace(HERE, epoch=index.epoch), wrong, 1)
        with pytest.raises(IndexUnavailable, match="epoch"):
            index.add(partition(epoch="another"), "e0", ROWS[0])
        assert len(index) == 0


@pytest.mark.parametrize("flat_limit", [10_000, 64], ids=["flat", "graph"])
async def test_another_space_is_filled_beside_and_takes_the_place(flat_limit: int) -> None:
    async with spaces(flat_limit=flat_limit) as index:
        for where, entry_id, row in KEPT.values():
            index.add(where, entry_id, row)
        steps: list[int] = []
        async with index.beside(HEADED, HEAD) as space:
            await index.fill(space, rows_of(600), steps.append)
            assert index.epoch == EPOCH
            before = index.serve(space)
        assert sum(steps) == 600
        assert max(steps) == BATCH_ROWS
        assert (index.epoch, len(index), space.index.stats().due) == (HEADED, 600, 0)
        asked = units(1, seed=9)[0]
        nearest = exact(asked, 4, 600)
        assert (await found(index, asked, HEADED))[:1] == nearest[:1]
        # Who planned in the epoch before is still answered in it, until it is retired.
        assert await found(index, ROWS[7], EPOCH, 1) == ["e7"]
        await index.retire(before)
        assert await found(index, ROWS[7], EPOCH, 1) == []


async def test_what_is_kept_and_removed_meanwhile_counts_more_than_a_row() -> None:
    async with spaces() as index:
        for where, entry_id, row in list(KEPT.values())[:300]:
            index.add(where, entry_id, row)

        async def slow() -> AsyncIterator[Row]:
            for at, row in enumerate(list(KEPT.values())[:300]):
                if at == 150:
                    index.remove(["e10", "e290"])
                    index.erase(["e11"])
                    index.add(HERE, "e5", ROWS[505])
                    index.add(HERE, "new", ROWS[506])
                yield row

        async with index.beside(HEADED, HEAD) as space:
            await index.fill(space, slow(), lambda _: None)
            index.serve(space)
        assert len(index) == 298
        names = {name for at in (10, 11, 290) for name in await found(index, ROWS[at], HEADED, 300)}
        assert not names & {"e10", "e11", "e290"}
        assert await found(index, ROWS[505], HEADED, 1) == ["e5"]
        assert await found(index, ROWS[506], HEADED, 1) == ["new"]


async def test_a_space_that_is_given_up_is_closed_and_leaves_nothing() -> None:
    async with spaces() as index:
        index.add(HERE, "e0", ROWS[0])
        with pytest.raises(RuntimeError, match="stop"):
            async with index.beside(HEADED, HEAD) as space:
                raise RuntimeError("stop")
        assert index.epoch == EPOCH
        assert space.index.health() == "the index is closed"
        assert await found(index, ROWS[0], HEADED) == []
        index.add(HERE, "e1", ROWS[1])
        async with index.beside(HEADED, HEAD):
            with pytest.raises(IndexUnavailable, match="already"):
                async with index.beside(HEADED, HEAD):
                    pass


async def test_a_row_that_is_no_vector_of_the_encoder_is_left_out() -> None:
    async def rows() -> AsyncIterator[Row]:
        yield HERE, "short", ROWS[0][:4].copy()
        yield HERE, "nan", np.full(DIM, np.nan, dtype=np.float32)
        yield HERE, "e1", ROWS[1]

    async with spaces(headed=True) as index:
        await index.restore(None, rows())
        assert len(index) == 1
        assert await found(index, ROWS[1], HEADED) == ["e1"]


async def test_a_snapshot_is_taken_over_by_its_own_epoch_only(tmp_path: Path) -> None:
    async with spaces(headed=True, flat_limit=64) as index:
        for where, entry_id, row in KEPT.values():
            index.add(where, entry_id, row)
        await settled(index.serving.index)
        await index.save(tmp_path)
    async with spaces(headed=True, flat_limit=64) as index:
        await index.restore(tmp_path, rows_of(600))
        assert (len(index), index.stats().snapshot_refused, index.stats().graphs) == (600, 0, 1)
        assert await found(index, ROWS[3], HEADED, 1) == ["e3"]
    async with spaces(flat_limit=64) as index:
        await index.restore(tmp_path, rows_of(600))
        assert (len(index), index.stats().snapshot_refused) == (600, 1)
        assert await found(index, ROWS[3], EPOCH, 1) == ["e3"]


async def test_searches_and_changes_go_on_through_a_swap() -> None:
    async with spaces(flat_limit=64) as index:
        for where, entry_id, row in list(KEPT.values())[:400]:
            index.add(where, entry_id, row)
        stop, asked = False, 0

        async def ask() -> None:
            nonlocal asked
            while not stop:
                at = asked % 400
                epoch = index.epoch  # as a plan does: once, before it waits for anything
                await asyncio.sleep(0)
                assert await found(index, ROWS[at], epoch, 1) == [f"e{at}"]
                asked += 1

        askers = [asyncio.create_task(ask()) for _ in range(4)]
        for epoch, head in ((HEADED, HEAD), (EPOCH, None), (HEADED, HEAD)):
            async with index.beside(epoch, head) as space:
                await index.fill(space, rows_of(400), lambda _: None)
                before = index.serve(space)
            await asyncio.sleep(0.05)
            await index.retire(before)
        stop = True
        await asyncio.gather(*askers)
        assert asked > 100
