"""The verifier that comes along: whole, small, told what it was made of, and right about what anybody would see."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest

from cacheproxy.verify.artefact import load
from cacheproxy.verify.open import SHIPPED
from cacheproxy.verify.scorer import PairScorer
from tests.support.artefacts import real_base

MOST_BYTES = 12_000_000
PERMISSIVE = {"Apache-2.0", "MIT", "CC BY 3.0", "CC BY 4.0", "CC0"}
QUESTIONS = [
    "How do I reset my password?", "What is the capital of France?", "cancel my order", "pay", "ok",
    "Why does my phone get hot while charging?", "Convert 5 miles to kilometres", "python sort list descending",
    "Is it safe to take ibuprofen with alcohol?", "Who wrote the novel that the film is based on?",
    "What does the warranty of a refurbished laptop cover, and for how long after the purchase?",
]  # fmt: skip
REWORDED = [
    ("How do I reset my password?", "How can I reset my password?", 0.98),
    ("What is the capital of France?", "what's the capital of france", 0.98),
    ("Can I cancel my order?", "Is it possible to cancel my order?", 0.9),
]
TRAPS = [
    ("How do I enable two-factor login?", "How do I disable two-factor login?", 0.95),
    ("What are the top 5 beaches in Spain?", "What are the top 10 beaches in Spain?", 0.97),
    ("What is the capital of France?", "What is the capital of Poland?", 0.8),
    ("Is it safe to eat raw eggs?", "Is it safe to eat raw oysters?", 0.85),
    ("Trains from Paris to London", "Trains from London to Paris", 0.99),
    ("Can I get a refund with a receipt?", "Can I get a refund without a receipt?", 0.95),
]


@cache
def scorer() -> PairScorer:
    return PairScorer(SHIPPED, real_base())


def test_it_is_whole_and_small_and_says_what_it_was_made_of() -> None:
    manifest, _, _ = load(SHIPPED)
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= MOST_BYTES
    assert manifest.description
    assert manifest.sources
    assert {one.licence for one in manifest.sources} <= PERMISSIVE
    assert not {"qqp", "mrpc", "quora"} & {word for one in manifest.sources for word in one.name.lower().split("_")}
    assert manifest.sha256


@pytest.mark.parametrize("question", QUESTIONS)
def test_equal_texts_are_nearly_certain_also_in_other_letters(question: str) -> None:
    for other in (question, question.upper(), question + " "):
        [found] = scorer().score([(question, other, 1.0)])
        assert found.veto == ""
        assert found.probability > 0.9, found.steps


@pytest.mark.parametrize(("kept", "asked", "cosine"), REWORDED)
def test_a_plain_rewording_is_probable(kept: str, asked: str, cosine: float) -> None:
    [found] = scorer().score([(asked, kept, cosine)])
    assert (found.veto, found.probability > 0.8) == ("", True), found.steps


@pytest.mark.parametrize(("kept", "asked", "cosine"), TRAPS)
def test_a_plain_trap_is_vetoed_or_improbable(kept: str, asked: str, cosine: float) -> None:
    for one, other in ((asked, kept), (kept, asked)):
        [found] = scorer().score([(one, other, cosine)])
        assert found.veto or found.probability < 0.5, found.steps


def test_its_word_does_not_depend_on_neighbours_threads_or_the_run() -> None:
    pairs = [(asked, kept, cosine) for kept, asked, cosine in (*REWORDED, *TRAPS)]
    alone = [PairScorer(SHIPPED, real_base()).score([pair])[0] for pair in pairs[:2]]
    together = scorer().score(pairs)
    assert together[:2] == alone
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: scorer().score([pair])[0], pairs)) == together
