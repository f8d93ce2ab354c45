"""Each pair gets a probability of its own, by steps that a reader can follow."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.model import FARTHER
from cacheproxy.verify import artefact
from cacheproxy.verify.cross import CrossEncoder, Words
from cacheproxy.verify.memory import LONGEST, MOST_TEXTS, Memory
from cacheproxy.verify.scorer import PairScorer, Steps
from tests.support.artefacts import tiny_base, write_verifier

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.verify.cross import Base

QUESTION = "How do I reset my password?"
PAIRS = [
    (QUESTION, "How can I reset my password?", 0.95),
    (QUESTION, "How do I delete my password?", 0.9),
    (QUESTION, "What is the weather?", 0.1),
    (QUESTION, QUESTION, 1.0),
    ("", "", 1.0),
    ("pay 5 dollars", "pay 6 dollars", 0.97),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def make(base: Base, tmp_path: Path) -> Any:
    def made(steps: Steps | None = None, **weights: Any) -> PairScorer:
        told = {"cheap": (0.0, 1.0), "both": (0.0, 1.0, 0.1), "hopeless": -3.5, **weights}
        write_verifier(tmp_path, base, weights=artefact.Weights(**told))
        return PairScorer(tmp_path, base, steps)

    return made


def test_a_probability_is_one_and_steps_tell_how_it_came(make: Any) -> None:
    for found in make().score(PAIRS):
        assert 0.0 <= found.probability <= 1.0
        names = [name for name, _ in found.steps]
        assert names[:2] == ["cosine", "cheap"]
        assert names[2:] in ([], ["cross"], ["equal"])
        assert all(0.0 <= value <= 1.0 for name, value in found.steps if name != "cosine")


def test_the_sum_is_that_of_the_manifest(make: Any) -> None:
    scorer = make(both=(0.25, 0.5, 0.0))
    [found] = scorer.score([(QUESTION, "How can I reset my password?", 0.95)])
    assert found.probability == pytest.approx(1 / (1 + math.exp(-(0.25 + 0.5 * 4.0))))
    assert dict(found.steps)["cheap"] == pytest.approx(1 / (1 + math.exp(-4.0)))


def test_the_same_again_whatever_stands_beside_it_and_whatever_thread_asks(make: Any) -> None:
    scorer = make()
    alone = [scorer.score([pair])[0] for pair in PAIRS]
    assert scorer.score(PAIRS) == scorer.score(PAIRS) == alone
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: scorer.score([pair])[0], PAIRS * 10)) == alone * 10


def test_two_scorers_on_one_base_do_not_know_of_each_other(make: Any) -> None:
    one, expected = make(), make().score(PAIRS)
    other = make(Steps(cross=False), both=(5.0, 1.0, 0.0))
    assert other.score(PAIRS) != expected
    assert one.score(PAIRS) == expected


def test_only_the_nearest_candidate_is_read_and_the_others_are_improbable(make: Any) -> None:
    same = "How to reset my password?"
    kept = [("How can I reset my password?", 0.9), ("Is it green?", 0.6), (same, 0.99), ("How do I reset it?", 0.2)]
    found = make().verify(QUESTION, kept)
    assert len(found) == len(kept)
    read = [at for at, one in enumerate(found) if dict(one.steps).get("cross") is not None]
    assert read == [2]
    assert all(one.probability == 0.0 for at, one in enumerate(found) if at not in read)


def test_what_is_farther_than_a_right_one_is_not_compared(make: Any) -> None:
    kept = [("Is it green?", 0.6), ("How can I reset my password?", 0.9), ("How do I reset 6 passwords?", 0.8)]
    found = make(both=(9.0, 0.0, 0.0)).verify(QUESTION, kept)
    assert [dict(one.steps).get(FARTHER) for one in found] == [1.0, None, 1.0]
    assert [one.probability > 0.9 for one in found] == [False, True, False]
    doubted = make(both=(0.0, 0.0, 0.0)).verify(QUESTION, kept)
    assert all("cheap" in dict(one.steps) for one in doubted)


def test_what_is_equal_but_for_capitals_and_white_space_is_not_read(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: str) -> float:
        raise AssertionError("read")

    scorer = make(both=(-9.0, 0.0, 0.0))
    monkeypatch.setattr(CrossEncoder, "logit", forbidden)
    for other in (QUESTION, QUESTION.lower(), f"{QUESTION} "):
        [found] = scorer.score([(QUESTION, other, 1.0)])
        assert found.probability == dict(found.steps)["equal"] == 0.99
    too_long = "pay " * 9_000
    with pytest.raises(AssertionError, match="read"):
        scorer.score([(too_long, too_long.upper(), 1.0)])


def test_for_an_ablation_every_pair_is_read(make: Any) -> None:
    free = make(sure=-9.0).without_rules()
    for pair in ((QUESTION, QUESTION.lower(), 1.0), ("pay my card", "pay the card", 0.97)):
        [found] = free.score([pair])
        assert "cross" in dict(found.steps)
        assert "sure" not in dict(found.steps)
    [equal] = free.score([(QUESTION, QUESTION.lower(), 1.0)])
    assert equal.probability >= dict(equal.steps)["equal"] == 0.99


def test_a_vetoed_candidate_leaves_its_place_to_the_next(make: Any) -> None:
    kept = [
        ("How do I reset 5 passwords?", 0.9),
        ("How do I reset 6 passwords?", 0.9),
        ("How do I reset 7 passwords?", 0.9),
    ]
    found = make().verify("How do I reset 7 passwords?", kept)
    assert [one.veto for one in found] == ["number", "number", ""]
    assert found[2].probability > 0.5
    free = make().without_rules().verify("How do I reset 7 passwords?", kept)
    assert [one.veto for one in free] == ["", "", ""]


def test_a_veto_is_told_with_whatever_probability(make: Any) -> None:
    [found] = make(Steps(cross=False)).score([("pay 5 dollars", "pay 6 dollars", 0.97)])
    assert found.veto == "number"


def test_what_the_trees_find_hopeless_is_not_read(make: Any) -> None:
    pair = (QUESTION, "Who is it?", 0.1)
    [spared] = make(hopeless=-3.5).score([pair])
    assert spared.probability == 0.0
    assert [name for name, _ in spared.steps] == ["cosine", "cheap"]
    [read] = make(hopeless=-4.5).score([pair])
    assert [name for name, _ in read.steps] == ["cosine", "cheap", "cross"]


def test_what_the_trees_are_sure_of_is_not_read_and_an_artefact_that_says_nothing_of_it_always_is(make: Any) -> None:
    pair = (QUESTION, "How can I reset my password?", 0.95)
    [spared] = make(sure=3.5, both=(-9.0, 1.0, 0.0)).score([pair])
    assert spared.probability == dict(spared.steps)["sure"] == dict(spared.steps)["cheap"] > 0.95
    for weights in ({"sure": 4.5}, {}, {"sure": 3.5, "cheap": (-2.0, 1.0)}):
        [read] = make(**weights).score([pair])
        assert "cross" in dict(read.steps)
    [vetoed] = make(sure=-9.0).score([("pay 5 dollars", "pay 6 dollars", 0.97)])
    assert vetoed.veto == "number"
    assert "sure" not in dict(vetoed.steps)
    [planted] = make(sure=-9.0).score([(QUESTION, f"In Oslo of all places, {QUESTION}", 0.97)])
    assert "sure" not in dict(planted.steps), "it has words of its own"
    [long] = make(sure=-9.0).score([("pay my card " * 40, "pay the card " * 40, 0.97)])
    assert "sure" not in dict(long.steps)


@pytest.mark.parametrize("weight", [-1.0, 0.0, 1.0])
def test_what_is_not_read_whole_is_never_right_whatever_the_weights(make: Any, weight: float) -> None:
    kept = " ".join(f"what is a{number}" for number in range(60))
    asked = "the " + kept + " pay"
    for pair in ((asked, kept.replace("a30", "b"), 1.0), ("pay " * 9_000, "pay " * 8_000, 1.0)):
        [found] = make(both=(9.0, 1.0, weight), hopeless=-1e6).score([pair])
        assert dict(found.steps)["cross"] < 1e-6
        assert found.probability < 1e-6


@pytest.mark.parametrize("cosine", [math.nan, math.inf, -math.inf, 1e30, -1.0, 2.0])
def test_a_cosine_that_is_none_still_gives_a_probability(make: Any, cosine: float) -> None:
    [found] = make().score([(QUESTION, "How can I reset my password?", cosine)])
    assert 0.0 <= found.probability <= 1.0


def test_no_candidates_get_no_word(make: Any) -> None:
    assert make().verify(QUESTION, []) == []
    assert make().score([]) == []


def test_a_text_that_comes_again_is_read_once_and_long_ones_each_time(base: Base) -> None:
    memory = Memory(Words(base))
    assert memory.text(QUESTION) is memory.text(QUESTION)
    assert memory.parts(f"{QUESTION} Pay.") is memory.parts(f"{QUESTION} Pay.")
    long = "pay " * LONGEST
    assert memory.text(long) is not memory.text(long)
    assert len(memory) == 1
    for number in range(2 * MOST_TEXTS):
        memory.text(f"pay {number}")
    assert len(memory) == MOST_TEXTS


def test_what_is_remembered_changes_no_word(make: Any) -> None:
    kept = [("How can I reset my password? Pay.", 0.9), (QUESTION, 1.0), ("pay 5", 0.1)]
    scorer = make()
    first = scorer.verify(QUESTION, kept)
    assert scorer.verify(QUESTION, kept) == first
    scorer.score([(text, QUESTION, cosine) for text, cosine in kept])
    assert scorer.verify(QUESTION, kept) == first
    assert scorer.forget() == len({QUESTION, *(text for text, _ in kept)})
    assert scorer.forget() == 0
    assert scorer.verify(QUESTION, kept) == first


def test_without_the_cross_encoder_the_trees_alone_decide(make: Any) -> None:
    scorer = make(Steps(cross=False), cheap=(0.5, 2.0))
    [found] = scorer.score([(QUESTION, QUESTION, 1.0)])
    assert found.probability == pytest.approx(1 / (1 + math.exp(-8.5)))
