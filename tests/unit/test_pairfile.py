"""What a training node reads: the pairs of one encoder, in groups that are never parted."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.learn.pairfile import FILE, PairRows, read_pairs
from cacheproxy.learn.pairwriter import PairRow, PairWriter
from tests.support.pairs import BASE, DIM, question, row, vector_of

if TYPE_CHECKING:
    from pathlib import Path


async def read(folder: Path, *rows: PairRow, base: str = BASE) -> PairRows:
    """Return what is read of these rows, while the proxy that wrote them still has the file open."""
    async with PairWriter(folder / FILE, 1000) as writer:
        for one in rows:
            await writer.record(one, writer.fence)
        return read_pairs(folder / FILE, base)


async def test_a_pair_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = row("a", "b", category="code"), row("c", "d", right=False)
    found = await read(tmp_path, *rows)
    assert found.a.shape == found.b.shape == (2, DIM)
    assert found.a.dtype == found.b.dtype == np.float32
    assert np.array_equal(found.a, np.stack([vector_of("a"), vector_of("c")]))
    assert np.array_equal(found.b, np.stack([vector_of("b"), vector_of("d")]))
    assert (found.right.tolist(), found.category, found.texts) == ([True, False], ("code", "c"), None)


async def test_texts_are_read_where_some_are_kept(tmp_path: Path) -> None:
    found = await read(tmp_path, row("a", "b"), row("c", "d", a_text="How?", b_text="How so?"))
    assert found.texts == (("", ""), ("How?", "How so?"))


async def test_only_pairs_of_the_encoder_are_read(tmp_path: Path) -> None:
    other = row("c", "d", base="encoder-2", a=b"\0" * 16, b=b"\0" * 16)
    assert (await read(tmp_path, row("a", "b"), other)).a.shape == (1, DIM)
    assert read_pairs(tmp_path / FILE, "encoder-2").a.shape == (1, 4)
    none = read_pairs(tmp_path / FILE, "encoder-3")
    assert (len(none.a), len(none.group), len(none.held), none.category) == (0, 0, 0, ())


async def test_pairs_that_share_a_question_are_one_group(tmp_path: Path) -> None:
    rows = [
        row("a", "b"),
        row("c", "d"),
        row("e", "b"),  # the question asked is one
        row("a", "f"),  # the kept one is
        row("d", "g"),  # what was asked became an entry
        row("x", "y"),
    ]
    group = (await read(tmp_path, *rows)).group.tolist()
    assert group == [0, 1, 0, 0, 1, 2]


async def test_a_further_variant_of_an_answer_is_of_the_same_question(tmp_path: Path) -> None:
    variant = row("a", "c", entry_id=question("variant of a").hex())
    assert (await read(tmp_path, row("a", "b"), variant)).group.tolist() == [0, 0]


async def test_the_same_text_asked_of_another_model_is_the_same_question(tmp_path: Path) -> None:
    other = row("a of another model", "c", a=vector_of("a").tobytes())
    assert (await read(tmp_path, row("a", "b"), other)).group.tolist() == [0, 0]


async def test_groups_do_not_span_tenants(tmp_path: Path) -> None:
    assert (await read(tmp_path, row("a", "b"), row("a", "b", tenant="u"))).group.tolist() == [0, 1]


async def test_a_fifth_of_the_groups_is_held_and_stays_so(tmp_path: Path) -> None:
    rows = [row(f"k{number}", f"q{number}") for number in range(400)]
    rows += [row(f"k{number}", f"r{number}") for number in range(400)]
    found = await read(tmp_path, *rows)
    assert 50 <= found.held[:400].sum() <= 110
    assert np.array_equal(found.held[:400], found.held[400:])  # never half a group
    async with PairWriter(tmp_path / FILE, 1000) as writer:
        for number in range(20):
            await writer.record(row(f"new{number}", f"newer{number}"), writer.fence)
    assert np.array_equal(read_pairs(tmp_path / FILE, BASE).held[:800], found.held)


async def test_a_smaller_question_that_joins_later_makes_no_group_held_that_was_trained_on(tmp_path: Path) -> None:
    rows = [row(f"z{number}", f"y{number}") for number in range(100)]
    rows += [row(f"v{number}", f"u{number}") for number in range(100)]
    before = await read(tmp_path, *rows)
    both = [row(f"a{number}", f"y{number}") for number in range(100)]
    both += [row(f"a{number}", f"u{number}") for number in range(100)]
    after = await read(tmp_path, *both)
    joined = before.held[:100] & before.held[100:]
    assert np.array_equal(after.held[:100], joined)
    assert np.array_equal(after.held[100:200], joined)
    assert joined.any()


async def test_a_file_is_read_without_its_proxy_and_not_changed(tmp_path: Path) -> None:
    await read(tmp_path, row("a", "b"))
    before = (tmp_path / FILE).read_bytes()
    assert len(read_pairs(tmp_path / FILE, BASE).a) == 1
    assert (tmp_path / FILE).read_bytes() == before


async def test_reading_does_not_see_half_of_what_is_written_meanwhile(tmp_path: Path) -> None:
    async with PairWriter(tmp_path / FILE, 1000) as writer:
        await writer.record(row("a", "b"), writer.fence)
        with contextlib.closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("DELETE FROM contents")
            assert len(read_pairs(tmp_path / FILE, BASE).a) == 1
            other.execute("ROLLBACK")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.sqlite3: no training pairs yet; set federated\.collect"):
        read_pairs(tmp_path / FILE, BASE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_another_file_is_refused_and_not_changed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=r"training\.sqlite3: .*training pairs"):
        read_pairs(tmp_path / FILE, BASE)
    assert (tmp_path / FILE).read_bytes() == content


async def test_vectors_of_several_lengths_are_told_as_damage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not all of one length"):
        await read(tmp_path, row("a", "b"), row("c", "d", b=b"\0" * 4))


async def test_a_file_of_the_first_version_is_read_and_gains_the_second_category(tmp_path: Path) -> None:
    await read(tmp_path, row("a", "b"))
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.executescript("ALTER TABLE pairs DROP COLUMN second; PRAGMA user_version = 1;")
    assert len(read_pairs(tmp_path / FILE, BASE).a) == 1
    async with PairWriter(tmp_path / FILE, 10) as writer:
        await writer.record(row("c", "d", second="x"), writer.fence)
        assert await writer.forget_categories(["x"]) == 1
    assert len(read_pairs(tmp_path / FILE, BASE).a) == 1
