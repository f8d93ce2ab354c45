"""G3: within one scope, what is planted for a question is rarely served to it, once answers are verified."""

from __future__ import annotations

import pytest

from cacheproxy.verify.cross import Words
from cacheproxy.verifying import base_of
from tests.attacks import inside
from tests.attacks.defence import Defence, RulesAlone, Vectors, verifier
from tests.attacks.questions import blocks
from tests.attacks.suffix import Climb, surrogate

_MOST_LOST_POINTS = 3.0
# The goal of one in twenty is not met here yet: docs/verification.md tells the rates, and what would help.
_NOT_MET = {("balanced", "prefix, unseen"), ("frugal", "prefix, unseen"), ("frugal", "prefix, in other words")}
_QUICK = Climb(places=6, tried=24, rounds=1)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return Vectors()


@pytest.fixture(scope="module")
def attempts(vectors: Vectors) -> inside.Attempts:
    """A part of the attempts that `report` makes: what a minute is enough for."""
    words = Words(base_of("all-MiniLM-L6-v2"))
    return inside.collect(vectors.encode, surrogate(words), known_many=2, transferred_many=20, how=_QUICK, targets=6)


def test_the_suite_has_its_own_hard_negatives() -> None:
    traps = {(trap, block.question) for block in blocks() for _, trap in block.traps}
    assert len(traps) >= 200
    assert {family for block in blocks() for family, _ in block.traps} >= {"number", "negation", "entity", "language"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("pack", ["strict", "balanced", "frugal"])
def test_verified_answers_resist_what_is_planted(vectors: Vectors, attempts: inside.Attempts, pack: str) -> None:
    verify = verifier()
    assert verify is not None
    rates = inside.rates(Defence(pack, vectors, verify), attempts)
    assert [rate for rate in inside.over(rates) if (pack, rate.family) not in _NOT_MET] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_verifying_costs_few_hits_that_thresholds_would_give(vectors: Vectors, attempts: inside.Attempts) -> None:
    verify = verifier()
    assert verify is not None
    thresholds = inside.rates(Defence("balanced", vectors, None), attempts)[-1]
    verified = inside.rates(Defence("balanced", vectors, verify), attempts)[-1]
    assert verified.percent >= thresholds.percent - _MOST_LOST_POINTS


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rules_alone_stop_most_hard_negatives_that_plain_cosine_serves(vectors: Vectors) -> None:
    pairs = inside.hard_negatives()
    plain = Defence("balanced", vectors, None, at_least=0.8).served(pairs)
    assert Defence("balanced", vectors, RulesAlone(0.8)).served(pairs) <= plain / 2
