from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheproxy.model import Asking
from cacheproxy.verify.answers import agrees, telling
from cacheproxy.verify.chains import MOST_PAIRS, Pair, compare, verify_chains
from tests.support.verifiers import LIKELY, UNLIKELY, CosineScorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheproxy.model import Verification

ANSWER = (
    "Photosynthesis is the process by which green plants turn light, water and carbon dioxide into sugar and oxygen."
)
PLANTS = Asking(text="Where does it happen?", chain=("What is photosynthesis?", ANSWER))
NEAR, FAR = 0.9, 0.3


def verified(
    asked: Asking,
    kept: Asking = PLANTS,
    scorer: CosineScorer | None = None,
    cosine: Callable[[str, str], float] = lambda one, other: NEAR,
) -> Verification:
    (word,) = verify_chains(asked, [kept], scorer or CosineScorer(), cosine, 0.6)
    return word


def chain(*said: str) -> Asking:
    return replace(PLANTS, chain=said)


def test_the_same_conversation_needs_no_verifier() -> None:
    scorer = CosineScorer()
    assert verified(replace(PLANTS, text="where does it happen"), scorer=scorer).probability == 1.0
    assert scorer.asked == []


def test_an_ancestor_that_was_reworded_and_answered_alike_is_the_same() -> None:
    word = verified(chain("How does photosynthesis work?", ANSWER))
    assert (word.probability, word.veto) == (1.0, "")


def test_a_reworded_ancestor_with_a_short_answer_counts_as_much_as_it_is_probable() -> None:
    one, other = chain("What is photosynthesis?", "A process."), chain("What's photosynthesis?", "A process.")
    assert verified(one, other).probability == LIKELY


APART: dict[str, tuple[Asking, Asking, str]] = {
    "more turns": (PLANTS, chain(*PLANTS.chain, "Why?", "Light."), "context_length"),
    "a question that stands alone": (replace(PLANTS, chain=()), PLANTS, "context_length"),
    "another answer": (PLANTS, chain(PLANTS.chain[0], "It is a kind of music."), "context_answer"),
    "another number": (
        chain("Where is he from?", "He was born in 1929 in Paris, as his mother told."),
        chain("Where is he from?", "He was born in 1928 in Paris, as his mother told."),
        "context_answer",
    ),
    "an answer not given": (chain("A?", "B."), chain("A?", ""), "context_answer"),
    "a question not asked": (chain("", "How can I help?"), chain("Hi", "How can I help?"), "context_answer"),
    "another question with an answer that tells nothing": (
        chain("When was he born?", "I don't know."), chain("Where was he born?", "I don't know."), "context_question"
    ),
    "too many differing turns": (
        chain(*[text for turn in range(MOST_PAIRS + 1) for text in (f"What is the {turn}?", ANSWER)]),
        chain(*[text for turn in range(MOST_PAIRS + 1) for text in (f"What's the {turn}?", ANSWER)]),
        "context_differs",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "kept", "veto"), APART.values(), ids=APART)
def test_another_context_is_another_question_whatever_its_words(asked: Asking, kept: Asking, veto: str) -> None:
    scorer = CosineScorer(bar=-1.0)
    word = verified(asked, kept, scorer)
    assert (word.probability, word.veto) == (0.0, veto)
    assert scorer.asked == []


def test_an_ancestor_that_is_vetoed_far_or_improbable_is_another_one() -> None:
    asked = chain("How does photosynthesis work at night?", ANSWER)
    assert verified(asked, scorer=CosineScorer(vetoes=frozenset({"night?"}))).veto == "context"
    assert verified(asked, cosine=lambda one, other: FAR).veto == "context"
    assert verified(asked, scorer=CosineScorer(bar=0.95)).veto == "context"
    assert verified(asked, cosine=lambda one, other: float("nan")).veto == "context"


def test_a_question_is_verified_in_its_own_words_or_standing_alone() -> None:
    asked, scorer = replace(PLANTS, text="Where in a cell is that?"), CosineScorer()
    near_alone = verified(asked, scorer=scorer, cosine=lambda one, other: NEAR if "(" in other else FAR)
    assert near_alone.probability == LIKELY**1.5
    assert ("Where in a cell is that?", "Where does it happen?") in scorer.asked
    assert ("Where in a cell is that? (photosynthesis)", "Where does it happen? (photosynthesis)") in scorer.asked
    assert verified(asked, cosine=lambda one, other: FAR).probability == UNLIKELY**1.5


@pytest.mark.parametrize(("text", "veto"), [("Why is that?", "asks_otherwise"), ("The place?", "")])
def test_another_word_to_ask_by_asks_for_something_else(text: str, veto: str) -> None:
    assert verified(replace(PLANTS, text=text)).veto == veto


def test_a_veto_on_both_forbids() -> None:
    asked = replace(PLANTS, text="Where does it not happen at all?")
    assert verified(asked, scorer=CosineScorer(vetoes=frozenset({"not"}))).veto == "not"


def test_a_question_that_only_spells_out_its_references_is_the_same() -> None:
    scorer = CosineScorer(bar=2.0)
    assert verified(replace(PLANTS, text="Where does photosynthesis happen?"), scorer=scorer).probability > 0.9
    assert scorer.asked == []


def test_references_are_spelled_out_in_the_very_same_context_only() -> None:
    asked = Asking(text="Where does photosynthesis happen?", chain=("How does photosynthesis work?", ANSWER))
    assert compare(asked, PLANTS).questions != ()


def test_every_pair_is_asked_about_once() -> None:
    scorer = CosineScorer()
    asked = replace(PLANTS, text="Where in a cell is that?")
    words = verify_chains(asked, [PLANTS, PLANTS], scorer, lambda one, other: NEAR, 0.6)
    assert words[0] == words[1]
    assert len(scorer.asked) == len(set(scorer.asked)) == 2


def test_a_pair_shows_no_text() -> None:
    assert "secret" not in repr(Pair("secret", "secret"))


AGREE: dict[str, tuple[str, str, bool]] = {
    "equal": (ANSWER, ANSWER, True),
    "white space": (ANSWER, ANSWER.replace(" ", "\n"), True),
    "letter case and marks": (ANSWER, "**" + ANSWER.replace("green", "Green").rstrip(".") + "**", True),
    "an added article": (ANSWER, ANSWER.replace("which green", "which the green"), True),
    "a word": (ANSWER, ANSWER.replace("turn", "convert"), False),
    "the order": (ANSWER, ANSWER.replace("sugar and oxygen", "oxygen and sugar"), False),
    "a number": ("There are 12 of them in the large green box", "There are 13 of them in the large green box", False),
    "a decimal": ("It weighs 1.5 kg", "It weighs 15 kg", False),
    "a sign": ("It is 5 % of all", "It is 5 $ of all", False),
    "a minus": ("It is 5 degrees", "It is -5 degrees", False),
    "a number in words": (f"{ANSWER} It has three parts.", f"{ANSWER} It has four parts.", False),
    "a negation": (ANSWER, ANSWER.replace("is the", "is not the"), False),
    "a name": (f"{ANSWER} As Ann said.", f"{ANSWER} As Bob said.", False),
    "nothing": ("", ANSWER, False),
    "nothing at all": ("", "", True),
}


@pytest.mark.parametrize(("one", "other", "same"), AGREE.values(), ids=AGREE)
def test_answers_agree_when_all_that_decides_does(one: str, other: str, same: bool) -> None:
    assert agrees(one, other) is agrees(other, one) is same


def test_an_answer_of_few_words_tells_nothing() -> None:
    assert not telling("I don't know.")
    assert telling(ANSWER)
