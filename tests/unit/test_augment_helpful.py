from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from cacheproxy.augment.helpful import FEATURES, MOST_CATEGORIES, Helpfulness, features
from cacheproxy.errors import ConfigError
from tests.support.examples import example

if TYPE_CHECKING:
    from cacheproxy.augment.example import Example

FEW = 30
BETTER: list[dict[str, Any]] = [
    {"question_cosine": 0.9},
    {"answer_cosine": 0.9},
    {"quality": 0.9},
    {"source": "operator"},
    {"source": "replayed"},
    {"offloads": 5.0},
]
WORSE: list[dict[str, Any]] = [
    {"question_cosine": 0.4},
    {"quality": 0.1},
    {"source": "small"},
    {"age_s": 30 * 86400.0},
    {"same_category": False},
]


def made(random: Random, entry_id: str = "e") -> Example:
    return example(
        entry_id,
        question_cosine=random.uniform(0.4, 1.0),
        answer_cosine=random.uniform(0.0, 1.0),
        quality=random.random(),
        age_s=random.uniform(0.0, 1e6),
        tokens=random.randrange(10, 900),
        offloads=random.uniform(0.0, 3.0),
    )


@pytest.mark.parametrize("fields", BETTER)
def test_before_anything_is_learnt_what_is_better_known_scores_higher(fields: dict[str, Any]) -> None:
    proxy = Helpfulness()
    assert proxy.score(example(**fields), FEW) > proxy.score(example(), FEW)


@pytest.mark.parametrize("fields", WORSE)
def test_before_anything_is_learnt_what_is_worse_known_scores_lower(fields: dict[str, Any]) -> None:
    proxy = Helpfulness()
    assert proxy.score(example(**fields), FEW) < proxy.score(example(), FEW)


def test_an_ordinary_example_is_as_likely_to_help_as_not_before_anything_is_learnt() -> None:
    assert Helpfulness().score(example(), FEW) == pytest.approx(0.5, abs=0.01)


def test_features_are_named_and_within_two() -> None:
    wild = example(
        question_cosine=float("nan"), answer_cosine=-9.0, quality=7.0, age_s=-1e12, tokens=-3, offloads=float("inf")
    )
    for one in (example(), wild):
        found = features(one, 0)
        assert found.shape == (len(FEATURES),)
        assert np.abs(found).max() <= 2.0


def test_it_learns_that_quality_counts_and_likeness_does_not() -> None:
    random, proxy = Random(1), Helpfulness()
    for _ in range(1500):
        one = made(random)
        proxy.learn(features(one, FEW), float(random.random() < 0.1 + 0.8 * one.quality), category="faq")
    good = proxy.score(example(quality=0.95, question_cosine=0.5), FEW, "faq")
    near = proxy.score(example(quality=0.05, question_cosine=0.95), FEW, "faq")
    assert good > 0.75
    assert near < 0.3


def test_it_learns_where_examples_do_not_help_and_leaves_another_category_alone() -> None:
    random, proxy = Random(2), Helpfulness()
    for _ in range(400):
        given = features(made(random), FEW)
        proxy.learn(given, float(random.random() < 0.9), category="intents")
        proxy.learn(given, float(random.random() < 0.05), category="arithmetic")
    one = example(question_cosine=0.8)
    assert proxy.score(one, FEW, "intents") > 0.8
    assert proxy.score(one, FEW, "arithmetic") < 0.15
    assert 0.2 < proxy.score(one, FEW, "new") < 0.8


def test_what_was_learnt_fades_when_the_world_changes() -> None:
    random, proxy = Random(3), Helpfulness()
    for _ in range(3000):
        proxy.learn(features(made(random), FEW), 1.0, category="faq")
    before = proxy.score(example(), FEW, "faq")
    for _ in range(1500):
        proxy.learn(features(made(random), FEW), 0.0, category="faq")
    assert before > 0.95
    assert proxy.score(example(), FEW, "faq") < 0.5


def test_a_reward_of_half_the_weight_moves_half_as_far_or_more() -> None:
    whole, half = Helpfulness(), Helpfulness()
    start = whole.score(example(), FEW)
    whole.learn(features(example(), FEW), 1.0)
    half.learn(features(example(), FEW), 1.0, weight=0.5)
    assert start < half.score(example(), FEW) < whole.score(example(), FEW)


@pytest.mark.parametrize(
    ("reward", "weight"), [(float("nan"), 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (float("inf"), 1.0)]
)
def test_a_reward_that_says_nothing_changes_nothing(reward: float, weight: float) -> None:
    proxy = Helpfulness()
    proxy.learn(features(example(), FEW), reward, category="faq", weight=weight)
    assert proxy.to_bytes() == Helpfulness().to_bytes()


def test_features_that_are_no_numbers_are_not_learnt() -> None:
    proxy = Helpfulness()
    proxy.learn(np.full(len(FEATURES), np.nan), 1.0)
    assert proxy.to_bytes() == Helpfulness().to_bytes()


def test_categories_are_bounded_and_further_ones_have_what_is_common() -> None:
    proxy = Helpfulness()
    for number in range(MOST_CATEGORIES + 5):
        proxy.learn(features(example(), FEW), 1.0, category=f"c{number}")
    assert len(msgspec.json.decode(proxy.to_bytes())["own"]) == MOST_CATEGORIES
    assert proxy.score(example(), FEW, f"c{MOST_CATEGORIES + 1}") == proxy.score(example(), FEW, "never seen")


def learnt() -> Helpfulness:
    random, proxy = Random(4), Helpfulness()
    for number in range(50):
        proxy.learn(features(made(random), FEW), random.random(), category=("a", "b", "")[number % 3])
    return proxy


def test_a_restart_goes_on_where_it_stopped() -> None:
    before = learnt()
    after = Helpfulness.from_bytes(before.to_bytes())
    assert after.to_bytes() == before.to_bytes()
    for proxy in (before, after):
        proxy.learn(features(example(quality=0.8), FEW), 1.0, category="a")
    for category in ("a", "b", "", "new"):
        assert after.score(example(), FEW, category) == before.score(example(), FEW, category)


def test_nothing_learnt_holds_text() -> None:
    assert b"What is" not in learnt().to_bytes()


def damaged(**fields: object) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(learnt().to_bytes()) | fields)


SIZE = len(FEATURES)
REFUSED = {
    "another version": damaged(version=2),
    "other features": damaged(features=list(FEATURES[::-1])),
    "no JSON": b"\x80\x04pickle",
    "not UTF-8": b'{"version": "\xff"}',
    "short weights": damaged(common={"mean": [0.0], "precision": [1.0]}),
    "a precision that is none": damaged(common={"mean": [0.0] * SIZE, "precision": [0.0] * SIZE * SIZE}),
    "an endless number": damaged(common={"mean": [1e300] * SIZE, "precision": [0.0] * SIZE * SIZE}),
    "an unknown field": damaged(more=1),
    "too many categories": damaged(
        own={str(number): msgspec.json.decode(learnt().to_bytes())["own"]["a"] for number in range(MOST_CATEGORIES + 1)}
    ),
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_what_another_version_wrote_or_is_damaged_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError, match="starts afresh"):
        Helpfulness.from_bytes(raw)
