"""The vectors beside the store: by epoch and id, for as long as their entries."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import numpy as np
import pytest
import structlog

from cacheproxy.errors import ConfigError
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


def _overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def _aside(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.glob("side.sqlite3.corrupt-*Z")]


@pytest.mark.parametrize("at", [0, 16384 + 3], ids=["the header", "a page that only reading all of it finds"])
async def test_a_damaged_file_is_kept_aside_and_a_new_one_begun(tmp_path: Path, at: int) -> None:
    path = tmp_path / "side.sqlite3"
    async with SideFile(path) as side:
        await side.change("one", {str(number): ROWS[0] for number in range(500)}, ())
    _overwrite(path, at, b"\xff" * 64)
    damaged = path.read_bytes()
    with structlog.testing.capture_logs() as logs:
        async with SideFile(path) as side:
            assert side.set_aside
            assert await side.page("") == []
            await side.change("one", {"a": ROWS[1]}, ())
            assert _aside(tmp_path) == [damaged]
            await side.scrub()  # an erasure: what is aside may hold it, too
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("side_vectors_set_aside", "error"),
        ("side_vectors_aside_remain", "warning"),
    ]
    async with SideFile(path) as side:
        assert not side.set_aside
        assert set(await side.read("one", ["a"], DIM)) == {"a"}


async def test_a_file_of_another_program_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "side.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (text TEXT)")
    with pytest.raises(ConfigError, match="move it aside"):
        await SideFile(path).__aenter__()
    assert path.exists()
    assert _aside(tmp_path) == []
