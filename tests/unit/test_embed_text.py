"""The long-input rule, over the shipped tokenizer."""

from __future__ import annotations

import time
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.embed.locate import locate
from cacheproxy.embed.text import Window, pad
from cacheproxy.errors import ConfigError

CLS, SEP, UNK = 101, 102, 100
WORDS = st.sampled_from(["river", "stone", "the", "of", "unbelievable", "42", "Paris", "don't", "x"])


@lru_cache
def window(size: int = 256) -> Window:
    return Window.load(locate("all-MiniLM-L6-v2").tokenizer, size)


@settings(deadline=None)
@given(words=st.lists(WORDS, max_size=60))
def test_a_text_is_unseen_in_part_exactly_when_it_does_not_fit(words: list[str]) -> None:
    text = " ".join(words)
    whole = window(256).read(text)
    cut = window(32).read(text)
    assert whole.unseen == b""
    assert (cut.unseen == b"") == (len(whole.ids) <= 32)
    assert cut.ids == whole.ids if len(whole.ids) <= 32 else len(cut.ids) == 32


@settings(deadline=None)
@given(text=st.text(max_size=300))
def test_any_text_fits_the_window_and_is_framed_by_the_special_tokens(text: str) -> None:
    tokens = window(32).read(text)
    assert 2 <= len(tokens.ids) <= 32
    assert (tokens.ids[0], tokens.ids[-1]) == (CLS, SEP)
    assert len(tokens.unseen) in (0, 16)
    assert window(32).read(text) == tokens


@settings(deadline=None)
@given(head=st.lists(WORDS, min_size=40, max_size=50), tail=st.lists(WORDS, min_size=40, max_size=50))
def test_texts_that_differ_in_the_middle_alone_are_seen_alike_and_told_apart(head: list[str], tail: list[str]) -> None:
    first, second = (window(32).read(" ".join([*head, middle, *tail])) for middle in ("41", "42"))
    assert first.ids == second.ids
    assert first.unseen != second.unseen


def test_a_long_text_is_represented_by_its_head_and_tail() -> None:
    seen = window(12).read("one two three four five six seven eight nine ten eleven twelve").ids
    assert seen[1:6] == window().read("one two three four five").ids[1:-1]
    assert seen[6:11] == window().read("eight nine ten eleven twelve").ids[1:-1]


def test_a_text_of_exactly_the_window_is_seen_whole() -> None:
    text = " ".join(["stone"] * 254)
    assert len(window().read(text).ids) == 256
    assert window().read(text).unseen == b""
    assert window().read(text + " stone").unseen != b""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("decode " + "a" * 150, "decode " + "b" * 150),
        ("is \U0001f34e a fruit", "is \U0001f697 a fruit"),
        ("what does \u200b mean", "what does \u200d mean"),
    ],
    ids=["a word of more than 100 letters", "emoji", "characters the normaliser drops"],
)
def test_what_the_vocabulary_does_not_hold_is_unseen(first: str, second: str) -> None:
    one, other = window().read(first), window().read(second)
    assert one.ids == other.ids
    assert one.unseen != other.unseen
    assert b"" not in (one.unseen, other.unseen)


def test_the_same_unknown_word_is_the_same_unseen_part() -> None:
    assert window().read("eat \U0001f34e now").unseen == window().read("please eat \U0001f34e").unseen


def test_white_space_is_never_unseen() -> None:
    assert window().read("\n\t first" + " " * 100_000 + "second \n").unseen == b""


def test_a_lone_surrogate_is_unseen_text_and_not_an_error() -> None:
    assert window().read("name \udc80").unseen != window().read("name \udc81").unseen


@pytest.mark.parametrize("text", ["x" * 1_000_000, "word " * 100_000, "\u6c34" * 500_000, "e\u0301" * 300_000])
def test_a_huge_text_costs_no_more_than_a_window(text: str) -> None:
    started = time.perf_counter()
    tokens = window().read(text)
    # Whole, the slowest of these takes seconds; the bound leaves room for a busy machine.
    assert time.perf_counter() - started < 1.0
    assert len(tokens.ids) <= 256
    assert tokens.unseen != b""


def test_a_long_text_keeps_both_ends_of_its_characters() -> None:
    filler = "filler words and more of them " * 1000
    tokens = window().read("Translate this: " + filler + " into German please")
    assert tokens.ids[1:4] == window().read("Translate this:").ids[1:-1]
    assert tokens.ids[-4:-1] == window().read("into German please").ids[1:-1]


def test_the_tokenizers_own_truncation_is_switched_off() -> None:
    # tokenizer.json of the shipped model asks for 128 tokens, cut and padded without a word.
    assert len(window().read("stone " * 200).ids) == 202
    assert len(window().read("stone").ids) == 3


def test_weights_grow_with_the_text_up_to_the_window() -> None:
    assert window().weigh("") < window().weigh("a question of some length") < window().weigh("x" * 10_000)
    assert window().weigh("x" * 1_000_000) == 256


def test_padding_is_masked() -> None:
    input_ids, attention_mask = pad([[101, 7, 102], [101, 102]])
    assert input_ids.tolist() == [[101, 7, 102], [101, 102, 0]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_window_too_small_for_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_seq_length 3"):
        window(3)
