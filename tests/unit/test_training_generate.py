"""Generated pairs: seeded, of every family, traps that differ and rewordings that keep what matters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from cacheproxy.training import generate
from cacheproxy.training.generate import Generator, made_of
from cacheproxy.training.material import SETS, read_material
from cacheproxy.verify import lexicon
from cacheproxy.verify.reading import read
from cacheproxy.verify.vocabulary import FRACTIONS, LARGE, NEGATORS, ORDINALS, SMALL

QUESTIONS = [
    "How do I enable dark mode on Android?", "What is the population of France in 2015?", "top 5 ways to save money",
    "How can I transfer photos from iPhone to Windows?", "Can I get a refund without a receipt?",
    "Why does my Python script not work?", "what's the best phone for kids", "Is it safe to eat raw eggs?",
    "Does stress cause headaches?", "When does the shop open at 10:30?", "How much is 500,000 yen in dollars?",
    "how to cook rice", "Where is the nearest bank?", "Do you have parking?", "who invented the telephone",
]  # fmt: skip
TRAPS = {"other_number", "negated", "opposite", "other_name", "narrowed", "turned", "other_aspect", "framed"}
REWORDINGS = {"polite", "misspelt", "plain", "contracted", "reframed", "spelt_numbers", "wrapped"}


def generator(seed: int) -> Generator:
    return Generator(QUESTIONS, lexicon.opposites, Random(seed))


def test_every_family_is_reached() -> None:
    found: set[str] = set()
    for seed in range(60):
        for question in QUESTIONS:
            made = generator(seed)
            found |= {one.family for one in (made.trap(question), made.rewording(question)) if one}
    assert found == TRAPS | REWORDINGS


def test_a_trap_is_never_its_question_and_says_that_it_is_one() -> None:
    sets = read_material([SETS]).learn.questions
    for made in made_of([*QUESTIONS, *sets], lexicon.opposites, Random(2), traps=4_000, rewordings=0):
        assert not made.label
        assert made.other.casefold().split() != made.text.casefold().split()
        assert made.family in TRAPS


def test_a_name_in_small_letters_is_not_swapped_for_itself_in_capitals() -> None:
    for seed in range(200):
        made = generator(seed).trap("swift")
        assert made is None or made.other.casefold() != "swift"


_FIGURES = re.compile(r"\d+(?:[.,:/]\d+)*")


def weighty(text: str) -> list[str]:
    """Return the negations and numbers of a text."""
    words = {*NEGATORS, *SMALL, *LARGE, *ORDINALS, *FRACTIONS} - {"one"}  # also a pronoun
    return [token for token in read(text).tokens if token in words or token[0].isdigit()]


def test_a_rewording_keeps_numbers_and_negations() -> None:
    sets = read_material([SETS]).learn.questions
    kept = 0
    for made in made_of(sets, lexicon.opposites, Random(3), traps=0, rewordings=4_000):
        assert made.label
        if made.family == "wrapped":  # what stands around the question has words of its own
            assert not Counter(weighty(made.text)) - Counter(weighty(made.other)), made.other
        elif made.family not in {"reframed", "spelt_numbers", "both_framed"}:
            assert weighty(made.text) == weighty(made.other), made.family
            kept += bool(weighty(made.text))
    assert kept > 100


@pytest.mark.parametrize(
    "text", ["Rs 500,000 in hand", "at 10:30, room 4", "version 3.11.2", "W-2 form 1099-B", "3/4 cup"]
)
def test_no_number_is_taken_apart(text: str) -> None:
    for seed in range(150):
        made = generator(seed).rewording(text)
        if made is not None:
            assert "zero" not in made.other
            longer = [word.strip(",").lower() for word in text.split() if word[0].isdigit() and len(word) > 1]
            assert all(digits in made.other.lower() for digits in longer)


def test_words_are_not_replaced_within_others() -> None:
    for seed in range(150):
        made = generator(seed).rewording("cutting edge R&D of bigger companies")
        assert made is None or "for example" not in made.other
        assert made is None or made.family == "misspelt" or "dge" in made.other


@pytest.mark.parametrize("text", ["", " ", "?", "\x00", "\ud800", "日本語", "1" * 3_000, "a" * 20_000, "{x} \\1 %s"])
def test_any_text_is_taken(text: str) -> None:
    for seed in range(20):
        made = generator(seed)
        for one in (made.trap(text), made.rewording(text)):
            assert one is None or one.other != text


def test_the_same_seed_gives_the_same_pairs() -> None:
    def made(seed: int) -> list[object]:
        return list(made_of(QUESTIONS, lexicon.opposites, Random(seed), traps=60, rewordings=60))

    assert made(1) == made(1) != made(2)
    assert len(made(1)) <= 120
    assert len(made(1)) > 100


def test_pairs_do_not_depend_on_the_order_of_hashes() -> None:
    program = (
        "from random import Random; from cacheproxy.training.generate import made_of;"
        "from cacheproxy.training.material import SETS, read_material; from cacheproxy.training.mix import batches;"
        "from itertools import islice; import hashlib;"
        "part = read_material([SETS]).learn;"
        "print(hashlib.sha256(repr(list(islice(batches(part, 5, 32), 20))).encode()).hexdigest(),"
        "hashlib.sha256(repr([(p.a, p.b) for b in islice(batches(part, 5, 32), 20) for p in b]).encode()).hexdigest())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=110,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_a_frame_holds_the_question_once_and_is_no_rewording_and_trap_at_once() -> None:
    for frame in (*generate._FRAMES_OTHER, *generate._FRAMES_SAME):
        assert len(re.findall(r"\{[qQbB]\}", frame)) == 1, frame
    assert not {*generate._FRAMES_OTHER} & {*generate._FRAMES_SAME}


def test_some_rewordings_stand_in_one_frame_with_their_question() -> None:
    made = list(made_of(QUESTIONS, lexicon.opposites, Random(4), traps=0, rewordings=600))
    both = [one for one in made if one.family == "both_framed"]
    assert 20 < len(both) < 80
    assert all(one.label for one in both)
