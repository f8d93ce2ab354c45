"""Spaces with an encoder of their own: filled while requests go on, caught up in turns, tidied by what is kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import pytest

from cacheproxy import settings
from cacheproxy.errors import EmbedderUnavailable
from cacheproxy.index.sidefile import FILE, SideFile
from cacheproxy.index.space import BEHIND_ROWS, ENCODED_ROWS, Behind
from cacheproxy.index.spaces import Spaces
from cacheproxy.recoding import Around, Recoding
from cacheproxy.store.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.encoders import HashEncoder
from tests.support.entries import make_entry
from tests.support.index_world import EPOCH, graphs_from, scan
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.index.restore import Row
    from cacheproxy.model import Entry


class Other(HashEncoder):
    """An encoder with another fingerprint, which takes its time for each text."""

    def __init__(self, name: str = "other", text_s: float = 0.0) -> None:
        super().__init__()
        self.fingerprint = f"{EPOCH}+{name}"
        self.text_s = text_s

    def encode(self, texts: list[str]) -> tuple[NDArray, list[bytes]]:  # type: ignore[override,type-arg]
        time.sleep(self.text_s * len(texts))  # it runs in a thread
        return super().encode(texts)

    @property
    def texts(self) -> int:
        """How many texts it encoded."""
        return sum(map(len, self.calls))


class World:
    """A store with entries, an index over it, and a file of vectors beside it."""

    def __init__(self, folder: Path, side: SideFile) -> None:
        self.folder = folder
        self.side = side
        self.store = MemoryStore(settings.Store(), FakeClock())
        self.busy = False

    async def keep(self, index: Spaces, number: int) -> Entry:
        """Keep an entry as a fill does."""
        entry = make_entry(f"question {number}", epoch=EPOCH, dim=HashEncoder.dim)
        assert await self.store.put(entry, self.store.fence)
        assert entry.vector is not None
        index.add(entry.partition, entry.id, entry.vector)
        return entry

    async def own(self, encoder: HashEncoder) -> Recoding:
        """Open what makes a space's vectors."""
        around = Around(store=self.store, config=settings.Encoder(), data_dir=self.folder, busy=lambda: self.busy)
        return await Recoding(encoder, around, self.side).open()

    def index(self, own: Recoding | None = None) -> Spaces:
        """Return an index that begins empty."""
        return Spaces(graphs_from(10_000), dim=HashEncoder.dim, base=EPOCH, own=own)

    def rows(self) -> AsyncIterator[Row]:
        """Return what a fill reads."""
        return self.store.scan(EPOCH)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with SideFile(folder / FILE) as side:
        yield World(folder, side)


@asynccontextmanager
async def caught_up(index: Spaces) -> AsyncIterator[None]:
    """Catch up again and again, as upkeep does, until the block ends."""

    async def forever() -> None:
        while True:
            await index.catch_up()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def finds(index: Spaces, entry: Entry, epoch: str) -> bool:
    vector = HashEncoder().encode([entry.text])[0][0]
    found = await index.search(replace(entry.partition, epoch=epoch), vector, 1)
    return [one.entry_id for one in found] == [entry.id]


# Of what was read whole, and of what was not


async def test_a_start_that_read_nothing_forgets_no_vector(tmp_path: Path) -> None:
    async with world(tmp_path) as one, one.index() as index:
        entries = [await one.keep(index, number) for number in range(40)]
        known = await one.own(Other())
        async with one.index(known) as before:
            await before.restore(None, one.rows())
            await before.catch_up()
        assert sorted(await one.side.page("")) == sorted(entry.id for entry in entries)

        encoder, heard = Other(), False
        async with one.index(await one.own(encoder)) as later:
            await later.restore(None, scan({}), whole=lambda: heard)
            await later.catch_up()
            assert len(await one.side.page("")) == 40
            # The engine comes: what it holds is told, but for one that was removed meanwhile.
            for entry in entries[1:]:
                assert entry.vector is not None
                later.add(entry.partition, entry.id, entry.vector)
            heard = True
            for _ in range(3):
                await later.catch_up()
            assert await finds(later, entries[1], encoder.fingerprint)
            assert encoder.texts == 0
            assert sorted(await one.side.page("")) == sorted(entry.id for entry in entries[1:])


async def test_a_fill_begins_when_it_is_known_what_is_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as one, one.index() as index:
        heard = False
        await index.restore(None, scan({}), whole=lambda: heard)
        encoder = Other()
        async with index.beside(encoder.fingerprint, None, await one.own(encoder)) as space:
            filling = asyncio.create_task(index.fill(space, one.rows(), lambda _: None))
            await asyncio.sleep(0.1)
            entry = await one.keep(index, 1)
            assert not filling.done()
            heard = True
            await filling
            index.serve(space)
        assert await finds(index, entry, encoder.fingerprint)


# Of a steady flow


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "live questions all the time"])
async def test_a_fill_ends_under_a_steady_flow_and_finds_what_came(tmp_path: Path, busy: bool) -> None:
    async with world(tmp_path) as one, one.index() as index, caught_up(index):
        for number in range(100):
            await one.keep(index, number)
        one.busy, encoder = busy, Other(text_s=0.001)
        stop, numbers = False, count(1000)
        last: list[Entry] = []

        async def flow() -> None:
            while not stop:
                last.append(await one.keep(index, next(numbers)))
                await asyncio.sleep(0.005)

        flowing = asyncio.create_task(flow())
        async with index.beside(encoder.fingerprint, None, await one.own(encoder)) as space:
            async with asyncio.timeout(30):
                await index.fill(space, one.rows(), lambda _: None)
            assert len(space.due) <= BEHIND_ROWS
            index.serve(space)
        stop = True
        await flowing
        await eventually(lambda: not index.waiting, "it has caught up", within_s=10)
        assert len(index) == len(one.store)
        assert await finds(index, last[-1], encoder.fingerprint)


async def test_a_fill_ends_where_more_comes_than_can_be_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheproxy.index.space._FEWER_WITHIN_S", 0.5)
    async with world(tmp_path) as one, one.index() as index, caught_up(index):
        for number in range(20):
            await one.keep(index, number)
        encoder, stop, numbers = Other(text_s=0.02), False, count(1000)

        async def flow() -> None:
            while not stop:
                await one.keep(index, next(numbers))
                await asyncio.sleep(0.004)

        flowing = asyncio.create_task(flow())
        async with index.beside(encoder.fingerprint, None, await one.own(encoder)) as space:
            async with asyncio.timeout(30):
                await index.fill(space, one.rows(), lambda _: None)
            index.serve(space)
        assert index.waiting > BEHIND_ROWS
        stop = True
        await flowing
        encoder.text_s = 0.0
        await eventually(lambda: not index.waiting, "it catches up once it can", within_s=10)
        assert len(index) == len(one.store)


async def test_a_space_that_never_has_enough_holds_up_no_other(tmp_path: Path) -> None:
    async with world(tmp_path) as one, one.index() as index:
        greedy, modest = Other("greedy"), Other("modest")
        async with (
            index.beside(greedy.fingerprint, None, await one.own(greedy)) as first,
            index.beside(modest.fingerprint, None, await one.own(modest)) as second,
        ):
            for number in range(ENCODED_ROWS):
                await one.keep(index, number)
            flowing, put = True, first.due.__setitem__

            async def flow() -> None:
                number = 1000
                while flowing:  # more comes for one of them with every turn of the loop
                    entry = make_entry(f"question {number}", epoch=EPOCH, dim=HashEncoder.dim)
                    put(entry.id, entry.partition)
                    number += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(flow())
            async with asyncio.timeout(20):
                await index.catch_up()
            flowing = False
            await task
            assert first.due
            assert not second.due
            assert len(await one.side.page("")) == ENCODED_ROWS


async def test_a_space_whose_encoder_fails_holds_up_no_other(tmp_path: Path) -> None:
    async with world(tmp_path) as one, one.index() as index:
        broken, sound = Other("broken"), Other("sound")
        async with (
            index.beside(broken.fingerprint, None, await one.own(broken)) as first,
            index.beside(sound.fingerprint, None, await one.own(sound)) as second,
        ):
            broken.dim += 1  # every vector is of another shape than it says from now on
            for number in range(ENCODED_ROWS):
                await one.keep(index, number)
            with pytest.raises(EmbedderUnavailable):
                await index.catch_up()
            assert first.due
            assert not second.due


def test_waiting_for_the_newest_ends_when_they_do_not_become_fewer() -> None:
    behind = Behind()
    assert not behind.waits(BEHIND_ROWS, 0)
    assert behind.waits(1000, 0)
    assert behind.waits(2000, 14)
    assert behind.waits(899, 15)
    assert behind.waits(850, 29)
    assert not behind.waits(850, 30)
    assert not behind.waits(100, 31)  # it is not taken up again


# Of what goes meanwhile


async def test_a_space_closed_while_it_catches_up_leaves_nothing_behind(tmp_path: Path) -> None:
    async with world(tmp_path) as one, one.index() as index:
        encoder = Other()
        encoder.gate.clear()
        async with index.beside(encoder.fingerprint, None, await one.own(encoder)):
            await one.keep(index, 1)
            catching = asyncio.create_task(index.catch_up())
            await eventually(lambda: encoder.texts == 1, "its text is being encoded")
        await one.side.only([EPOCH])  # as whoever gives it up does
        encoder.gate.set()
        await catching
        assert await one.side.page("") == []


async def test_what_moved_to_another_category_meanwhile_is_found_there(tmp_path: Path) -> None:
    encoder = Other()
    async with world(tmp_path) as one, one.index(await one.own(encoder)) as index:
        entry = await one.keep(index, 1)
        assert entry.vector is not None
        moved, vector = replace(entry.partition, category="another"), encoder.encode([entry.text])[0][0]
        index.add(moved, entry.id, entry.vector, (encoder.fingerprint, vector))
        await index.catch_up()
        for where, there in ((entry.partition, []), (moved, [entry.id])):
            found = await index.search(replace(where, epoch=encoder.fingerprint), vector, 1)
            assert [one.entry_id for one in found] == there
