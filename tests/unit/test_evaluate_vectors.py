from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from cacheproxy.evaluate.progress import progress
from cacheproxy.evaluate.vectors import embed_texts
from tests.support.angles import AngleEncoder

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["a", "b 0.5", "c|left out\x00", "a", "d 0.25"]


def test_each_distinct_text_is_encoded_once_and_gets_its_own_vector() -> None:
    encoder = AngleEncoder()
    seen = embed_texts(TEXTS, encoder, None)
    assert sorted(encoder.encoded) == sorted(set(TEXTS))
    assert seen.keys() == set(TEXTS)
    assert float(seen["a"].vector @ seen["b 0.5"].vector) == pytest.approx(0.5)
    assert float(seen["a"].vector @ seen["d 0.25"].vector) == pytest.approx(0.25)
    assert (seen["a"].unseen, seen["c|left out\x00"].unseen) == (b"", b"left out\x00")


def test_a_second_run_encodes_only_what_is_new(tmp_path: Path) -> None:
    first = embed_texts(TEXTS, AngleEncoder(), tmp_path)
    encoder = AngleEncoder()
    again = embed_texts([*TEXTS, "new 0.75"], encoder, tmp_path)
    assert encoder.encoded == ["new 0.75"]
    for text in TEXTS:
        np.testing.assert_array_equal(again[text].vector, first[text].vector)
        assert again[text].unseen == first[text].unseen


def test_another_encoder_shares_nothing(tmp_path: Path) -> None:
    embed_texts(TEXTS, AngleEncoder(), tmp_path)
    other = AngleEncoder("angles/other/1-0")
    embed_texts(TEXTS, other, tmp_path)
    assert len(other.encoded) == len(set(TEXTS))


def test_the_cache_holds_no_text(tmp_path: Path) -> None:
    embed_texts(["a question nobody may read"], AngleEncoder(), tmp_path)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    assert not any(b"nobody may read" in file.read_bytes() for file in files)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an archive", None])
def test_a_damaged_cache_file_costs_time_only(tmp_path: Path, damage: bytes | None) -> None:
    embed_texts(TEXTS, AngleEncoder(), tmp_path)
    [file] = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    encoder = AngleEncoder()
    assert embed_texts(TEXTS, encoder, tmp_path).keys() == set(TEXTS)
    assert sorted(encoder.encoded) == sorted(set(TEXTS))


def test_arrays_that_need_pickle_are_not_loaded(tmp_path: Path) -> None:
    embed_texts(TEXTS, AngleEncoder(), tmp_path)
    [file] = tmp_path.rglob("*.npz")
    np.savez(file, fingerprint=np.array([{}], dtype=object))
    encoder = AngleEncoder()
    embed_texts(TEXTS, encoder, tmp_path)
    assert len(encoder.encoded) == len(set(TEXTS))


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    assert embed_texts(TEXTS, AngleEncoder(), tmp_path / "file").keys() == set(TEXTS)


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with progress("embedding", 2000, console) as advance:
        for _ in range(40):
            advance(50)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 10
    assert (lines[0], lines[-1]) == ("embedding: 200 of 2,000", "embedding: 2,000 of 2,000")


def test_progress_is_a_bar_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress("embedding", 3, console) as advance:
        advance(3)
    assert isinstance(console.file, io.StringIO)
    assert "3/3" in console.file.getvalue()
