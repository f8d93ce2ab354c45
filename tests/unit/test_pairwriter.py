"""The file of training pairs: the last word counts, the oldest go first, and what is erased is gone."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import TrainingUnavailable
from cacheproxy.learn.pairfile import FILE, read_pairs
from cacheproxy.learn.pairwriter import PairRow, PairWriter
from cacheproxy.model import Selector
from tests.support.pairs import BASE, held_in, question, row, vector_of

if TYPE_CHECKING:
    from pathlib import Path


async def written(writer: PairWriter, *rows: PairRow) -> None:
    for one in rows:
        assert await writer.record(one, writer.fence)


def entries(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / FILE)) as connection:
        return [
            bytes.fromhex(one).decode().strip(".")
            for (one,) in connection.execute("SELECT entry FROM pairs ORDER BY n")
        ]


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_the_last_word_on_a_pair_counts(tmp_path: Path) -> None:
    async with PairWriter(tmp_path / FILE, 10) as writer:
        await written(writer, row("a", "b"), row("c", "d"), row("a", "b", right=False, source="shadow"))
    found = read_pairs(tmp_path / FILE, BASE)
    assert found.right.tolist() == [True, False]
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as connection:
        assert connection.execute("SELECT count(*) FROM contents").fetchone() == (2,)


async def test_the_oldest_pairs_go_first(tmp_path: Path) -> None:
    async with PairWriter(tmp_path / FILE, 3) as writer:
        await written(writer, *(row(f"k{number}", "q") for number in range(4)))
        await written(writer, row("k1", "q", right=False), row("k4", "q"))
    assert entries(tmp_path) == ["k3", "k1", "k4"]
    async with PairWriter(tmp_path / FILE, 1):
        assert entries(tmp_path) == ["k4"]


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    async with PairWriter(tmp_path / FILE, 3) as writer:
        await written(writer, row("a", "b"))
        assert modes(tmp_path) == {0o600}


MEANT: list[tuple[Selector, tuple[str, ...], dict[str, Any]]] = [
    (Selector(tenant="x"), (), {"tenant": "x"}),
    (Selector(user="x"), (), {"user": "x"}),
    (Selector(user="x"), (), {"kept_user": "x"}),
    (Selector(tenant="t", user="x"), (), {"kept_user": "x"}),
    (Selector(category="x"), (), {"category": "x"}),
    (Selector(category="x"), (), {"second": "x"}),
    (Selector(category="x"), (), {"kept_category": "x"}),
    (Selector(category="x"), (), {"kept_second": "x"}),
    (Selector(before_s=100.0), (), {"at_s": 99.0}),
    (Selector(before_s=100.0), (), {"kept_at_s": 99.0}),
    (Selector(tag="x"), (question("gone").hex(),), {}),
    (Selector(tag="x"), (question("canary").hex(),), {}),
    (Selector(ids=(question("gone").hex(),)), (), {}),
    (Selector(ids=(question("gone").hex(),), tenant="t", before_s=101.0), (), {}),
]


@pytest.mark.parametrize(("selector", "erased", "fields"), MEANT)
async def test_what_an_erasure_means_of_either_question_is_gone_from_the_file(
    tmp_path: Path, selector: Selector, erased: tuple[str, ...], fields: dict[str, Any]
) -> None:
    texts = {"a_text": "canary of the kept one" * 50, "b_text": "canary of the one asked" * 50}
    async with PairWriter(tmp_path / FILE, 100) as writer:
        await written(writer, *(row(f"k{number}", f"q{number}") for number in range(9)))
        await written(writer, row("gone", "canary", **texts, **fields))
        await written(writer, *(row(f"l{number}", f"r{number}") for number in range(9)))
        assert vector_of("gone").tobytes() in held_in(tmp_path)
        assert await writer.forget(selector, erased) == 1
        for canary in (b"canary", question("gone"), vector_of("gone").tobytes(), vector_of("canary").tobytes()):
            assert canary not in held_in(tmp_path)
        assert await writer.forget(selector, erased) == 0
    assert len(read_pairs(tmp_path / FILE, BASE).a) == 18


@pytest.mark.parametrize(
    "selector",
    [
        Selector(),
        Selector(tenant="x", user="u"),
        Selector(tenant="t", user="x"),
        Selector(tag="x"),
        Selector(ids=("ff" * 16,)),
        Selector(ids=(question("a").hex(),), tenant="x"),
        Selector(ids=(question("a").hex(),), tag="x"),
        Selector(ids=(question("a").hex(),), before_s=100.0),
        Selector(before_s=100.0),
    ],
)
async def test_what_it_does_not_mean_stays(tmp_path: Path, selector: Selector) -> None:
    async with PairWriter(tmp_path / FILE, 10) as writer:
        await written(writer, row("a", "b", user="u"))
        assert await writer.forget(selector) == 0
    assert len(read_pairs(tmp_path / FILE, BASE).a) == 1


PURGED = [
    (Selector(category="c"), (), 0),
    (Selector(category="c", ids=("ff" * 16,)), (), 0),
    (Selector(category="c"), (question("a").hex(),), 1),
    (Selector(category="c"), (question("b").hex(),), 1),
    (Selector(ids=(question("a").hex(),)), (), 1),
    (Selector(ids=(question("a").hex(),), before_s=101.0), (), 1),
    (Selector(ids=(question("a").hex(),), before_s=100.0), (), 0),
]


@pytest.mark.parametrize(("selector", "erased", "count"), PURGED)
async def test_a_purge_takes_the_pairs_of_its_entries_and_no_others(
    tmp_path: Path, selector: Selector, erased: tuple[str, ...], count: int
) -> None:
    async with PairWriter(tmp_path / FILE, 10) as writer:
        await written(writer, row("a", "b"))
        assert await writer.forget_entries(selector, erased) == count
        assert (vector_of("a").tobytes() in held_in(tmp_path)) == (count == 0)


async def test_what_was_being_made_when_something_was_erased_is_not_written(tmp_path: Path) -> None:
    async with PairWriter(tmp_path / FILE, 10) as writer:
        fence = writer.fence
        await writer.forget(Selector(user="u"))
        assert not await writer.record(row("a", "b", user="u"), fence)
        assert await writer.record(row("a", "b", user="u"), writer.fence)


async def test_an_erasure_that_a_reader_holds_up_is_not_done(tmp_path: Path) -> None:
    async with PairWriter(tmp_path / FILE, 10) as writer:
        await written(writer, row("a", "b"))
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM contents").fetchall()
            with pytest.raises(TrainingUnavailable):
                await writer.forget(Selector(tenant="t"))
        assert await writer.forget(Selector(tenant="t")) == 0
        assert vector_of("a").tobytes() not in held_in(tmp_path)


async def test_a_closed_file_takes_nothing(tmp_path: Path) -> None:
    writer = PairWriter(tmp_path / FILE, 10)
    with pytest.raises(TrainingUnavailable, match="could not be written"):
        await writer.record(row("a", "b"), 0)
