"""Vectors made anew of kept texts: what is erased meanwhile, or while nobody uses them, is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from cacheproxy import settings
from cacheproxy.index.sidefile import FILE, SideFile
from cacheproxy.recoding import Around, Layered, Recoding
from tests.support.encoders import HashEncoder
from tests.support.index_world import units
from tests.support.pairs import held_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

ROWS = units(2)


def around(folder: Path) -> Around:
    store = cast("Any", None)  # no entry is read here
    return Around(store=store, config=settings.Encoder(), data_dir=folder, busy=lambda: False)


async def test_an_entry_erased_while_two_make_vectors_is_kept_by_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def made(_: Recoding, ids: Sequence[str]) -> dict[str, Any]:
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


async def test_without_a_file_nothing_is_made_to_erase(tmp_path: Path) -> None:
    async with Layered(around(tmp_path)) as layered:
        await layered.erase(["a"])
    assert not (tmp_path / FILE).exists()
