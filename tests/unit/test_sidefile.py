"""The vectors beside the store: by epoch and id, for as long as their entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.index.sidefile import SideFile
from tests.support.index_world import DIM, units
from tests.support.pairs import held_in

if TYPE_CHECKING:
    from pathlib import Path

ROWS = units(3)


async def test_what_is_kept_is_there_after_a_restart_and_by_its_epoch_alone(tmp_path: Path) -> None:
    async with SideFile(tmp_path / "side.sqlite3") as side:
        await side.change("one", {"a": ROWS[0], "b": ROWS[1]}, ())
        await side.change("two", {"a": ROWS[2]}, ())
    async with SideFile(tmp_path / "side.sqlite3") as side:
        found = await side.read("one", ["a", "b", "c"], DIM)
        assert set(found) == {"a", "b"}
        assert np.array_equal(found["a"], ROWS[0])
        assert set(await side.read("two", ["a", "b"], DIM)) == {"a"}
        assert await side.read("one", ["a"], DIM + 1) == {}
        assert await side.page("") == ["a", "b"]
        assert await side.page("b") == []


async def test_what_is_forgotten_is_gone_from_every_epoch_and_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "side.sqlite3"
    async with SideFile(path) as side:
        await side.change("one", {"a": ROWS[0]}, ())
        await side.change("two", {"a": ROWS[0], "b": ROWS[1]}, ())
        await side.change("two", {}, ["a"])
        await side.scrub()
        assert await side.read("one", ["a"], DIM) == await side.read("two", ["a"], DIM) == {}
        held = held_in(tmp_path)
        assert ROWS[0].tobytes() not in held
        assert ROWS[1].tobytes() in held
        await side.only(["one"])
        assert await side.page("") == []
        assert ROWS[1].tobytes() not in held_in(tmp_path)
