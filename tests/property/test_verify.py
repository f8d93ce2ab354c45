"""The verifier's word on any two texts: a probability, the same again, and the same by fast ways as by slow ones."""

from __future__ import annotations

import math
import re
from functools import cache
from tempfile import mkdtemp

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from cacheproxy.verify import lexicon, tokens
from cacheproxy.verify import reading as readings
from cacheproxy.verify.cross import Words, shortened
from cacheproxy.verify.features import NAMES, compare, features, prepare
from cacheproxy.verify.rules import rule_values
from cacheproxy.verify.scorer import PairScorer
from cacheproxy.verify.vetoes import vetoed
from tests.support.artefacts import tiny_base, write_verifier

WORDS = "how do i pay reset not never 5 6.5 $7 10:30 a@b.co foo_bar x::y U.S. don't iPhone C++ open close [SEP] ? -x"
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join),
    st.text(alphabet=st.characters(codec=None), max_size=20),
    st.text(alphabet="aA5 ._-:/'\"`", max_size=40),
)
COSINES = st.floats(-1, 1, width=32)


@cache
def scorer() -> PairScorer:
    from pathlib import Path

    folder = Path(mkdtemp())
    base = tiny_base(folder / "base")
    write_verifier(folder / "verifier", base)
    return PairScorer(folder / "verifier", base)


@cache
def words() -> Words:
    return scorer()._words


@given(TEXTS, TEXTS, COSINES)
@example("", "", 1.0)
@example("\ud800", "\x00", -1.0)
def test_any_pair_gets_a_probability_and_the_same_again(asked: str, kept: str, cosine: float) -> None:
    [found] = scorer().score([(asked, kept, cosine)])
    assert 0.0 <= found.probability <= 1.0
    assert found == scorer().score([("other", "pair", 0.1), (asked, kept, cosine)])[1]
    assert found == scorer().verify(asked, [(kept, cosine)])[0]
    assert all(math.isfinite(value) for _, value in found.steps)


@given(TEXTS, TEXTS, COSINES)
def test_features_are_finite_and_of_one_shape(asked: str, kept: str, cosine: float) -> None:
    one, other = prepare(asked, words()), prepare(kept, words())
    row, veto = compare(one, other, cosine)
    assert row.shape == (len(NAMES),)
    assert row.dtype == np.float32
    assert np.isfinite(row).all()
    assert (row == features(one, other, cosine)).all()
    assert veto == vetoed(one.reading, other.reading)
    ruled = np.array(rule_values(one.reading, other.reading), dtype=np.float32)
    assert (row[-len(ruled) :] == ruled).all()


@given(TEXTS)
def test_a_text_agrees_with_itself(text: str) -> None:
    one, other = prepare(text, words()), prepare(text, words())
    row = dict(zip(NAMES, compare(one, other, 1.0)[0].tolist(), strict=True))
    assert vetoed(one.reading, other.reading) == ""
    assert row["words_shared"] == row["content_shared"] == row["words_edit"] == 1.0
    assert row["strange"] == row["strange_other"] == row["opposites"] == 0.0


_PLAIN = "(?P<plain>[A-Za-z]{1,60}(?=[\\s?!,;]|\\Z))\n  |"


@given(TEXTS)
def test_the_short_cut_for_plain_words_finds_what_the_long_way_finds(text: str) -> None:
    pattern = tokens._TOKEN.pattern
    assert _PLAIN in pattern
    slow = re.compile(pattern.replace(_PLAIN, ""), re.VERBOSE)
    short = [(m.lastgroup, m.span()) for m in tokens._TOKEN.finditer(text)]
    assert [("word" if kind == "plain" else kind, span) for kind, span in short] == [
        (m.lastgroup, m.span()) for m in slow.finditer(text)
    ]


KIN = "buy purchase open close cat dog lock unlock happy unhappy big large end stop xyzzy march"
KNOWN = st.sampled_from(KIN.split())


@given(KNOWN, KNOWN)
def test_kin_says_what_its_parts_say(left: str, right: str) -> None:
    kin = lexicon.kin(left, right)
    assert kin.opposite == lexicon.antonyms(left, right)
    assert kin.sibling == lexicon.siblings(left, right)
    assert kin.synonym == lexicon.synonyms(left, right)


@given(st.lists(KNOWN), st.lists(KNOWN))
def test_the_kin_of_many_words_is_that_of_each_two(words: list[str], others: list[str]) -> None:
    each = {(one, other): lexicon.kin(one, other) for one in words for other in others}
    assert lexicon.related(words, others) == {pair: kin for pair, kin in each.items() if any(kin)}


@given(TEXTS)
@example("[SEP] [CLS]##a  b_c")
def test_tokens_word_by_word_are_those_of_the_whole_text(text: str) -> None:
    assert words()._tokens_of is not None
    assert words().ids(text) == words()._encoded(text)


@given(TEXTS)
def test_a_gist_is_what_the_reading_says(text: str) -> None:
    whole, part = readings.read(text), readings.gist(text)
    assert (part.text, part.tokens, part.content, part.code) == (whole.text, whole.tokens, whole.content, whole.code)


TOKENS = st.lists(st.integers(0, 4), max_size=90)


@given(TOKENS, TOKENS, TOKENS, TOKENS)
def test_a_pair_is_cut_the_same_on_both_sides_or_not_at_all(
    before: list[int], one: list[int], other: list[int], after: list[int]
) -> None:
    left, right = [*before, *one, *after], [*before, *other, *after]
    cut = shortened(left, right, 64)
    if cut is None:
        assert max(len(left), len(right)) > 64
        return
    short, shorter = cut
    assert max(len(short), len(shorter)) <= 64
    assert (short == shorter) == (left == right)
    gone = len(left) - len(short)
    assert len(right) - len(shorter) == gone
    assert any(
        left == [*left[:at], *short, *left[at + len(short) :]]
        and right == [*left[:at], *shorter, *left[at + len(short) :]]
        for at in range(gone + 1)
    )
