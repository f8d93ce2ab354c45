from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.upstream.local.text import Detokenizer, StopFilter, piece_bytes

# A byte-level vocabulary of one byte a token: token i is byte i, in GPT-2's printable alphabet.
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_SHIFTED = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = [chr(byte) if byte in _PRINTABLE else chr(256 + _SHIFTED.index(byte)) for byte in range(256)]


def read(tokens: bytes) -> list[str]:
    text = Detokenizer(BYTES)
    return [*(text.feed(token) for token in tokens), text.flush()]


def test_every_byte_has_its_piece() -> None:
    assert [piece_bytes(piece) for piece in BYTES] == [bytes([byte]) for byte in range(256)]
    assert piece_bytes("Ġhello") == b" hello"
    assert piece_bytes("Ċ") == b"\n"


def test_a_character_split_over_tokens_is_held_until_it_is_whole() -> None:
    assert read("né🙂".encode()) == ["n", "", "é", "", "", "", "🙂", ""]


def test_a_character_that_never_became_whole_ends_as_a_replacement() -> None:
    assert "".join(read("ok🙂".encode()[:-1])) == "ok\N{REPLACEMENT CHARACTER}"


def test_control_tokens_have_no_text() -> None:
    assert Detokenizer([None, "a"]).feed(0) == ""


@given(st.text())
def test_text_cut_at_every_byte_comes_back_unchanged(text: str) -> None:
    pieces = read(text.encode())
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces) or "\N{REPLACEMENT CHARACTER}" in text


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "stopped"),
    [
        (["Hello", " world"], [], "Hello world", False),
        (["Hello", " world"], ["wor"], "Hello ", True),
        (["Hello w", "or", "ld"], ["world"], "Hello ", True),
        (["one STO", "P two"], ["STOP"], "one ", True),
        (["one STO", "RY"], ["STOP"], "one STORY", False),
        (["ends with STO"], ["STOP"], "ends with STO", False),
        (["aaab"], ["aab"], "a", True),
        (["a", "a", "a", "b"], ["aab"], "a", True),
        (["x END y STOP"], ["STOP", "END"], "x ", True),
        (["STOP"], ["STOP"], "", True),
        (["a\n", "\nb"], ["\n\n"], "a", True),
    ],
)
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str], shown: str, stopped: bool) -> None:
    stop = StopFilter(stops)
    assert "".join([*map(stop.feed, pieces), stop.flush()]) == shown
    assert stop.stopped is stopped


def test_nothing_follows_a_stop_string() -> None:
    stop = StopFilter(["."])
    assert stop.feed("End. More") == "End"
    assert stop.feed("even more") == ""
    assert stop.flush() == ""


@given(
    st.text(alphabet="ab", max_size=30), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3), st.data()
)
def test_stop_strings_are_found_however_the_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    stop = StopFilter(stops)
    shown = "".join([*(stop.feed(text[a:b]) for a, b in pairwise(cuts)), stop.flush()])
    ends = [text.find(s) for s in stops if s in text]
    # With several stop strings the cut decides which one is complete first, never whether one gets through.
    assert text.startswith(shown)
    assert stop.stopped is bool(ends)
    assert not any(s in shown for s in stops)
    if not ends:
        assert shown == text
    if len(stops) == 1 and ends:
        assert shown == text[: ends[0]]
