from __future__ import annotations

from random import Random
from statistics import median

import msgspec
import pytest

from cacheproxy.augment.gains import BINS, MOST_CATEGORIES, NEVER, Gains
from cacheproxy.errors import ConfigError


def tried(gains: Gains, category: str, score: float, times: int, *, with_: float, without: float) -> None:
    """Let answers be good this often with examples, and this often without."""
    for number in range(times):
        share = (number + 0.5) / times
        gains.learn(category, score, float(share < with_), augmented=True)
        gains.learn(category, score, float(share < without), augmented=False)


def test_before_anything_is_tried_examples_must_be_a_little_likely_to_help() -> None:
    assert Gains().threshold("faq") == pytest.approx(0.4)


def test_the_threshold_is_the_lowest_score_that_gains() -> None:
    gains = Gains()
    for part in range(BINS):
        score = (part + 0.5) / BINS
        tried(gains, "faq", score, 60, with_=0.5 + (0.3 if score > 0.7 else -0.3), without=0.5)
    assert gains.threshold("faq") == pytest.approx(0.7)


def test_where_examples_never_help_none_is_used() -> None:
    gains = Gains()
    for part in range(BINS):
        tried(gains, "arithmetic", (part + 0.5) / BINS, 60, with_=0.3, without=0.5)
    assert gains.threshold("arithmetic") == NEVER


def test_where_the_small_model_needs_no_examples_none_is_used() -> None:
    gains = Gains()
    for part in range(BINS):
        tried(gains, "easy", (part + 0.5) / BINS, 200, with_=1.0, without=1.0)
    assert gains.threshold("easy") == NEVER


def test_where_examples_always_help_all_are_used() -> None:
    gains = Gains()
    for part in range(BINS):
        tried(gains, "intents", (part + 0.5) / BINS, 40, with_=0.9, without=0.1)
    assert gains.threshold("intents") == 0.0


def test_a_few_lucky_tries_do_not_move_the_threshold() -> None:
    gains = Gains()
    tried(gains, "faq", 0.05, 1, with_=1.0, without=0.0)
    assert gains.threshold("faq") == pytest.approx(0.4)


def test_tries_of_one_arm_alone_say_nothing() -> None:
    gains = Gains()
    for _ in range(500):
        gains.learn("faq", 0.1, 1.0, augmented=True)
    assert gains.threshold("faq") == Gains().threshold("faq")


def test_gains_never_fall_as_scores_rise_whatever_the_tries_say() -> None:
    random, gains = Random(1), Gains()
    for _ in range(500):
        gains.learn("faq", random.random(), random.random(), augmented=random.random() < 0.5)
    known = [part.gain for part in gains.known("faq")]
    assert known == sorted(known)


def test_a_new_category_begins_as_all_others_are_and_then_finds_its_own() -> None:
    gains = Gains()
    for part in range(BINS):
        tried(gains, "intents", (part + 0.5) / BINS, 60, with_=0.9, without=0.1)
    assert gains.threshold("new") == 0.0
    for part in range(BINS):
        tried(gains, "new", (part + 0.5) / BINS, 120, with_=0.1, without=0.9)
    assert gains.threshold("new") == NEVER
    assert gains.threshold("intents") == 0.0


def beside(seed: int, tries: int, gain: float) -> Gains:
    """Return what is learnt of a category that gains 0.55, and beside it of one that gains so much."""
    random, gains = Random(seed), Gains()
    for at in range(max(150, tries)):
        for category, helped, times in (("helped", 0.6, 150), ("other", 0.05 + gain, tries)):
            score = random.uniform(0.2, 0.7)
            for with_ in (True, False) if at < times else ():
                reward = random.random() < (helped if with_ else 0.05)
                gains.learn(category, score, float(reward), augmented=with_)
    return gains


@pytest.mark.parametrize(("tries", "theta"), [(60, 0.5), (150, 0.6)])
def test_a_category_that_nothing_helps_soon_stops_beside_one_that_examples_help(tries: int, theta: float) -> None:
    found = [beside(seed, tries, 0.0) for seed in range(15)]
    assert median(one.threshold("other") for one in found) >= theta
    assert all(one.threshold("helped") <= 0.2 for one in found)


def test_a_category_that_examples_help_as_much_goes_on_using_them() -> None:
    assert all(beside(seed, 60, 0.5).threshold("other") <= 0.2 for seed in range(10))


def test_what_is_never_right_is_believed_sooner_than_what_is_right_by_chance() -> None:
    never, half = Gains(), Gains()
    tried(never, "facts", 0.95, 15, with_=0.0, without=0.0)
    for number in range(15):
        for with_ in (True, False):
            half.learn("facts", 0.95, float(number % 2), augmented=with_)
    assert abs(never.known("facts")[-1].gain) < half.known("facts")[-1].gain


def test_a_try_tells_of_scores_nearby() -> None:
    gains = Gains()
    tried(gains, "faq", 0.55, 60, with_=0.2, without=0.6)
    assert gains.known("faq")[3].gain < Gains().known("faq")[3].gain


def test_what_was_tried_fades_when_the_world_changes() -> None:
    gains = Gains()
    tried(gains, "faq", 0.95, 2000, with_=1.0, without=0.0)
    tried(gains, "faq", 0.95, 600, with_=0.0, without=1.0)
    assert gains.known("faq")[-1].gain < 0.0


def test_tries_are_counted_by_part_and_arm() -> None:
    gains = Gains()
    gains.learn("faq", 0.55, 1.0, augmented=True)
    gains.learn("faq", 0.55, 1.0, augmented=True, weight=0.5)
    gains.learn("faq", 0.55, 0.0, augmented=False)
    part = gains.known("faq")[5]
    assert (part.score, part.tries_without) == (0.5, 1.0)
    assert part.tries_with == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize(
    ("score", "reward", "weight"),
    [(float("nan"), 1.0, 1.0), (0.5, float("nan"), 1.0), (0.5, 1.0, 0.0), (0.5, 1.0, float("inf"))],
)
def test_a_try_that_says_nothing_changes_nothing(score: float, reward: float, weight: float) -> None:
    gains = Gains()
    gains.learn("faq", score, reward, augmented=True, weight=weight)
    assert gains.to_bytes() == Gains().to_bytes()


@pytest.mark.parametrize("score", [-3.0, 1.0, 7.0])
def test_a_score_beyond_the_scale_counts_as_its_end(score: float) -> None:
    gains = Gains()
    gains.learn("faq", score, 1.0, augmented=True)
    assert gains.known("faq")[0 if score < 0 else -1].tries_with == 1.0


def test_categories_are_bounded() -> None:
    gains = Gains()
    for number in range(MOST_CATEGORIES + 5):
        gains.learn(f"c{number}", 0.5, 1.0, augmented=True)
    assert len(msgspec.json.decode(gains.to_bytes())["categories"]) == MOST_CATEGORIES + 1


def learnt() -> Gains:
    random, gains = Random(2), Gains()
    for number in range(200):
        gains.learn(("a", "b", "")[number % 3], random.random(), random.random(), augmented=random.random() < 0.5)
    return gains


def test_a_restart_goes_on_where_it_stopped() -> None:
    before = learnt()
    after = Gains.from_bytes(before.to_bytes())
    assert after.to_bytes() == before.to_bytes()
    for category in ("a", "b", "new"):
        assert after.known(category) == before.known(category)


def damaged(**fields: object) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(learnt().to_bytes()) | fields)


REFUSED = {
    "another version": damaged(version=2),
    "no JSON": b"\x80\x04pickle",
    "not UTF-8": b'{"version": "\xff"}',
    "other parts": damaged(categories={"a": {"weights": [[1.0], [1.0]], "rewards": [[0.0], [0.0]]}}),
    "more rewards than tries": damaged(
        categories={"a": {"weights": [[1.0] * BINS, [1.0] * BINS], "rewards": [[2.0] * BINS, [0.0] * BINS]}}
    ),
    "negative tries": damaged(
        categories={"a": {"weights": [[-1.0] * BINS, [1.0] * BINS], "rewards": [[0.0] * BINS, [0.0] * BINS]}}
    ),
    "an unknown field": damaged(more=1),
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_what_another_version_wrote_or_is_damaged_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError, match="starts afresh"):
        Gains.from_bytes(raw)
