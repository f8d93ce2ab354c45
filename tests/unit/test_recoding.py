"""Vectors made anew of kept texts: what is erased meanwhile, or while nobody uses them, is gone."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from cacheproxy import settings
from cacheproxy.embed.slow import BATCH_TEXTS, Slow
from cacheproxy.errors import EmbedderUnavailable, IndexUnavailable
from cacheproxy.index.sidefile import FILE, SideFile
from cacheproxy.recoding import Around, Layered, Recoding
from tests.support.encoders import HashEncoder
from tests.support.index_world import units
from tests.support.pairs import held_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROWS = units(2)


def around(folder: Path) -> Around:
    store = cast("Any", None)  # no entry is read here
    return Around(store=store, config=settings.Encoder(), data_dir=folder, busy=lambda: False)


async def test_an_entry_erased_while_two_make_vectors_is_kept_by_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def made(_: Recoding, ids: Sequence[str], *, hurry: bool) -> dict[str, Any]:
        assert not hurry
        await ends[ids[0]].wait()
        return {ids[0]: ROWS[0]}

    monkeypatch.setattr(Recoding, "_made", made)
    async with SideFile(tmp_path / FILE) as side:
        own = await Recoding(HashEncoder(), around(tmp_path), side).open()
        first, second = (asyncio.create_task(own.vectors([one])) for one in ("a", "b"))
        await asyncio.sleep(0.05)
        ends["b"].set()
        assert set(await second) == {"b"}
        own.forget(["a"])
        ends["a"].set()
        assert await first == {}
        await own.aclose()
        assert await side.page("") == ["b"]


async def test_what_nobody_uses_is_erased_as_well(tmp_path: Path) -> None:
    async with SideFile(tmp_path / FILE) as side:
        await side.change("an epoch that serves no more", {"a": ROWS[0], "b": ROWS[1]}, ())
    async with Layered(around(tmp_path)) as layered:
        await layered.erase(["a"])
    held = held_in(tmp_path)
    assert ROWS[0].tobytes() not in held
    assert ROWS[1].tobytes() in held


async def test_what_is_wanted_by_two_at_once_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SideFile(tmp_path / FILE) as side:
        await side.change("an epoch", {"a": ROWS[0]}, ())
    opened, enter = [], SideFile.__aenter__

    async def noted(side: SideFile) -> SideFile:
        opened.append(side)
        return await enter(side)

    monkeypatch.setattr(SideFile, "__aenter__", noted)
    async with Layered(around(tmp_path)) as layered:
        await asyncio.gather(layered.erase(["a"]), layered.only(["an epoch"]))
    assert len(opened) == 1


async def test_an_export_that_was_cancelled_is_removed_only_once_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, did = threading.Event(), threading.Event(), list[str]()

    def opened(*_: object) -> None:
        begun.set()
        may_end.wait(timeout=10.0)
        did.append("exported")

    monkeypatch.setattr("cacheproxy.recoding.open_tuned", opened)
    monkeypatch.setattr("cacheproxy.recoding.prune_exports", lambda *_: did.append("removed"))
    async with Layered(around(tmp_path)) as layered:
        examining = asyncio.create_task(layered.slow(cast("Any", None)))
        await asyncio.to_thread(begun.wait, 10.0)
        examining.cancel()
        await asyncio.wait({examining})
        removing = asyncio.create_task(layered.prune(()))
        await asyncio.sleep(0.1)
        assert did == []
        may_end.set()
        await removing
    assert did == ["exported", "removed"]


async def test_a_file_that_cannot_be_opened_leaves_an_erasure_owed(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    async with Layered(around(tmp_path)) as layered:
        with pytest.raises(IndexUnavailable, match=FILE):
            await layered.erase(["a"])


async def test_without_a_file_nothing_is_made_to_erase(tmp_path: Path) -> None:
    async with Layered(around(tmp_path)) as layered:
        await layered.erase(["a"])
    assert not (tmp_path / FILE).exists()


class Stubborn(SideFile):
    """A file of vectors whose changes wait for `go`; the first one fails then, as on a full disk, or is cancelled."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go = asyncio.Event()
        self.changes = 0

    async def change(self, epoch: str, kept: Any, gone: Any) -> None:
        self.changes += 1
        first = self.changes == 1
        await self.go.wait()
        if first:
            raise IndexUnavailable("the disk is full")
        await super().change(epoch, kept, gone)


@pytest.mark.parametrize("how", ["fails", "cancelled"])
async def test_an_erasure_outlives_a_flush_under_way_that_comes_to_nothing(tmp_path: Path, how: str) -> None:
    side = Stubborn(tmp_path / FILE)
    async with side:
        own = await Recoding(HashEncoder(), around(tmp_path), side).open()
        own.keep("a", ROWS[0])
        own.keep("b", ROWS[1])
        under_way = asyncio.create_task(own.flush())
        await asyncio.sleep(0.01)
        own.forget(["a"])
        erasing = asyncio.create_task(own.flush())
        await asyncio.sleep(0.01)
        if how == "cancelled":
            under_way.cancel()
            await asyncio.sleep(0.01)
        side.go.set()
        await asyncio.gather(under_way, erasing, return_exceptions=True)
        await own.flush()
        assert await side.page("") == ["b"]
        await own.aclose()
    assert ROWS[0].tobytes() not in held_in(tmp_path)


async def test_what_was_to_be_forgotten_is_forgotten_though_the_flush_was_cancelled(tmp_path: Path) -> None:
    side = Stubborn(tmp_path / FILE)
    async with side:
        await SideFile.change(side, "epoch", {"a": ROWS[0]}, ())
        own = await Recoding(HashEncoder(), around(tmp_path), side).open()
        own.forget(["a"])
        flushing = asyncio.create_task(own.flush())
        await asyncio.sleep(0.01)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        side.go.set()
        await own.aclose()
        assert await side.page("") == []


async def test_what_is_made_after_the_end_is_not_written(tmp_path: Path) -> None:
    async with SideFile(tmp_path / FILE) as side:
        own = await Recoding(HashEncoder(), around(tmp_path), side).open()
        own.keep("a", ROWS[0])
        await own.aclose()
        own.keep("b", ROWS[1])
        await own.flush()
        assert await side.page("") == ["a"]


async def test_an_end_fails_whoever_waits_for_a_batch_and_cancels_nobody() -> None:
    encoder = HashEncoder()
    slow = Slow(encoder, lambda: False)
    encoder.gate.clear()
    first, second = (
        asyncio.create_task(slow.embedded([f"{name} {at}" for at in range(2 * BATCH_TEXTS)])) for name in "ab"
    )
    await asyncio.sleep(0.05)
    slow.close()
    encoder.gate.set()
    ends = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(one) for one in ends] == [EmbedderUnavailable] * 2


async def test_only_who_hurries_does_not_wait_for_live_questions() -> None:
    slow = Slow(HashEncoder(), lambda: True)
    texts = [f"text {at}" for at in range(3 * BATCH_TEXTS)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert len(await slow.embedded(texts, hurry=True)) == len(texts)
    hurried = loop.time() - began
    began = loop.time()
    assert len(await slow.embedded(texts)) == len(texts)
    assert loop.time() - began > 0.6  # three times 0.2 s, and no longer however busy it is
    assert hurried < 0.5
    slow.close()
