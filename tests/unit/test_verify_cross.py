"""The cross-encoder's ends: any text becomes tokens, long pairs are cut where they agree, damaged bases are refused."""

from __future__ import annotations

import json
import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.errors import ConfigError, VerifierUnavailable
from cacheproxy.verify.cross import SIDE_TOKENS, CrossEncoder, Words, shortened
from cacheproxy.verify.graph import Shape, build
from tests.support.artefacts import DIM, HEADS, LAYERS, cross_of, real_base, tiny_base

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.verify.cross import Base

TEXTS = [
    "",
    " ",
    "how do i pay",
    "a\x00b",
    "x\ud800y",
    "\udfff",
    "日本語 ça va \U0001f600",
    "a" * 1_000_000,
    "?" * 9_000,
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def cross(base: Base) -> CrossEncoder:
    return CrossEncoder(build(cross_of(base), Shape(layers=LAYERS, heads=HEADS, dim=DIM)), Words(base))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_any_text_becomes_tokens_and_any_pair_is_told_of(base: Base, cross: CrossEncoder, text: str) -> None:
    words = Words(base)
    assert all(0 <= one < len(words.vectors) for one in words.ids(text))
    for other in ("how do i pay", text):
        told = cross.logit(text, other)
        assert math.isfinite(told) or told == -math.inf


@pytest.mark.parametrize("spelt", ["[SEP]", "[CLS]", "[PAD]", "[MASK]", "[UNK]"])
def test_a_question_cannot_spell_a_special_token(base: Base, spelt: str) -> None:
    words = Words(base)
    own = {words.first, words.last, 0, 4}
    assert own.isdisjoint(words.ids(f"how do i {spelt} pay {spelt}"))
    real = Words(real_base())
    assert {real.first, real.last}.isdisjoint(real.ids(f"how do i {spelt} pay"))


def test_a_word_too_long_to_be_one_is_not_remembered() -> None:
    words = Words(real_base())
    assert words._tokens_of is not None
    long = "pay " + "a" * 101
    assert words.ids(long) == words._encoded(long)
    assert words._tokens_of.cache_info().currsize == 0
    assert words.ids("pay " * 30) == words._encoded("pay " * 30)
    assert words._tokens_of.cache_info().currsize == 1
    assert words.ids(" " * 101) == []


def test_half_a_character_is_read_like_an_unknown_one(base: Base) -> None:
    words = Words(base)
    assert words.ids("pay \ud83d now") == words.ids("pay \ufffd now")


def test_of_a_very_long_text_only_its_ends_are_read_and_another_one_is_not_told_of(
    base: Base, cross: CrossEncoder
) -> None:
    long = "pay " * 10_000
    assert len(Words(base).ids(long)) <= 16_001
    assert cross.logit(long, long[:20_000] + "reset" + long[20_005:]) == -math.inf
    assert cross.logit("pay", long) == cross.logit(long, "pay") == -math.inf
    assert math.isfinite(cross.logit(long, long))


def row(*parts: tuple[int, int]) -> list[int]:
    """Return so many of each number."""
    return [number for number, count in parts for _ in range(count)]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([], [], ([], [])),
        ([1, 2], [3], ([1, 2], [3])),
        (list(range(64)), list(range(1, 65)), (list(range(64)), list(range(1, 65)))),
        # One place differs, at the start, in the middle, at the end: eight tokens stay on each side of it.
        ([7, *range(100, 200)], [8, *range(100, 200)], ([7, *range(100, 108)], [8, *range(100, 108)])),
        (
            [*range(100, 150), 7, *range(150, 200)],
            [*range(100, 150), 8, 9, *range(150, 200)],
            ([*range(142, 150), 7, *range(150, 158)], [*range(142, 150), 8, 9, *range(150, 158)]),
        ),
        ([*range(100, 200), 7], [*range(100, 200), 8], ([*range(192, 200), 7], [*range(192, 200), 8])),
        # One says more.
        (list(range(100)), [*range(100), 7], (list(range(92, 100)), [*range(92, 100), 7])),
        ([*range(50), *range(50)], list(range(50)), ([*range(42, 50), *range(50)], list(range(42, 50)))),
        # Equal ones: the end stands for the whole.
        (list(range(100)), list(range(100)), (list(range(92, 100)), list(range(92, 100)))),
        # Two places far apart, or nothing in common.
        ([7, *range(100, 200), 7], [8, *range(100, 200), 8], None),
        (row((1, 65)), row((2, 65)), None),
        (row((1, 65)), [], None),
    ],
)
def test_long_pairs_are_cut_around_where_they_differ(
    one: list[int], other: list[int], expected: tuple[list[int], list[int]] | None
) -> None:
    assert shortened(one, other, SIDE_TOKENS) == expected
    turned = shortened(other, one, SIDE_TOKENS)
    assert turned == (None if expected is None else expected[::-1])


def test_long_questions_that_differ_in_one_place_are_told_apart_and_in_many_not_told_of(cross: CrossEncoder) -> None:
    body = ["how do i pay my card"] * 20
    kept = " ".join([*body, "open", *body])
    near = " ".join([*body, "close", *body])
    assert math.isfinite(cross.logit(kept, near))
    assert cross.logit(kept, near) != cross.logit(kept, kept)
    assert cross.logit(kept, " ".join(["close", *body, *body, "open"])) == -math.inf


def test_threads_share_one_and_each_gets_the_value_it_would_get_alone(cross: CrossEncoder) -> None:
    pairs = [(f"how do i pay {number}", "pay my card") for number in range(20)]
    alone = [cross.logit(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: cross.logit(*pair), pairs * 5)) == alone * 5


def test_an_engine_that_fails_is_unavailable(base: Base) -> None:
    short = {**cross_of(base)}
    short["embeddings.position_embeddings.weight"] = short["embeddings.position_embeddings.weight"][:4]
    cross = CrossEncoder(build(short, Shape(layers=LAYERS, heads=HEADS, dim=DIM)), Words(base))
    with pytest.raises(VerifierUnavailable):
        cross.logit("how do i pay", "how can i pay")


@pytest.mark.parametrize("graph", [b"", b"nonsense", b"\x00" * 100])
def test_what_is_no_graph_is_refused(base: Base, graph: bytes) -> None:
    with pytest.raises(ConfigError, match="train or install it again"):
        CrossEncoder(graph, Words(base))


def test_word_embeddings_are_mapped_not_copied_and_two_may_share_a_base() -> None:
    base = real_base()
    tracemalloc.start()
    try:
        one, other = Words(base), Words(base)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < one.vectors.nbytes / 10
    assert not one.vectors.flags.owndata
    assert not one.vectors.flags.writeable
    assert (one.vectors[[0, 2000, -1]] == other.vectors[[0, 2000, -1]]).all()


def test_word_embeddings_are_those_of_the_file(base: Base) -> None:
    from safetensors.numpy import load_file

    assert (Words(base).vectors == load_file(base.weights)["embeddings.word_embeddings.weight"]).all()


def test_a_tokenizer_of_more_tokens_than_the_weights_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has more tokens"):
        Words(tiny_base(tmp_path, vocabulary=50))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 16,
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"null",
        (10**9).to_bytes(8, "little"),
    ],
)
def test_weights_that_hold_no_word_embeddings_are_refused(base: Base, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ConfigError, match=r"(?s)w: "):
        Words(replace(base, weights=tmp_path / "w"))


@pytest.mark.parametrize(
    "change", [{"dtype": "F16"}, {"shape": [3, 5]}, {"shape": [9]}, {"data_offsets": [0, 10**9]}, {"shape": None}]
)
def test_a_header_that_does_not_fit_is_refused(base: Base, tmp_path: Path, change: dict[str, object]) -> None:
    whole = base.weights.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    header["embeddings.word_embeddings.weight"] |= change
    packed = json.dumps(header).encode()
    (tmp_path / "w").write_bytes(len(packed).to_bytes(8, "little") + packed + whole[8 + size :])
    with pytest.raises(ConfigError):
        Words(replace(base, weights=tmp_path / "w"))


def test_a_missing_or_damaged_tokenizer_is_refused(base: Base, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("{}")
    for file in (tmp_path / "t", tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot be read as a tokenizer"):
            Words(replace(base, tokenizer=file))
    with pytest.raises(ConfigError):
        Words(replace(base, weights=tmp_path / "none"))


def test_a_pairs_logit_is_a_number_of_its_tokens_alone(cross: CrossEncoder) -> None:
    assert cross.logit("How do I PAY", "pay") == cross.logit("how do i pay", "PAY")
    assert cross.logit("how do i pay", "reset my card") != cross.logit("reset my card", "how do i pay")
    assert isinstance(cross.logit("pay", "pay"), float)
    assert not np.isnan(cross.logit("", ""))


def test_both_orders_together_are_their_mean_and_the_same_either_way(cross: CrossEncoder) -> None:
    one, other = "how do i pay", "reset my card"
    assert cross.both(one, other) == cross.both(other, one)
    assert cross.both(one, other) == pytest.approx((cross.logit(one, other) + cross.logit(other, one)) / 2)
    assert cross.both("pay", "word " * 9_000) == -math.inf
