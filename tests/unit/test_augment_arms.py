"""Who answers a miss, by what is known of every arm."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import msgspec
import numpy as np
import pytest

from cacheproxy.augment.arms import (
    VERSION,
    Arm,
    ArmScore,
    Choice,
    Reason,
    Router,
    Situation,
    Terms,
    chances_of,
)
from cacheproxy.augment.belief import DIM, Runs
from cacheproxy.errors import ConfigError

ASKED = Situation(max_similarity=0.8, mean_helpfulness=0.6, examples=3, question_tokens=40, agreement=0.5)
BARE = Situation(max_similarity=0.0, mean_helpfulness=0.0, examples=0, question_tokens=40)
BUSY = replace(ASKED, load=1.2)


def taught(quality: dict[Arm, float], *, count: int = 200, terms: Terms | None = None) -> Router:
    """Return a router that has seen answers of every arm, good as often as told."""
    router, random = Router(terms), Random(7)
    for _ in range(count):
        for arm, share in quality.items():
            asked = replace(ASKED, max_similarity=random.uniform(0.5, 1.0), question_tokens=random.randrange(5, 400))
            router.reward("faq", arm, asked, float(random.random() < share))
    return router


def choices(router: Router, situation: Situation, count: int = 400) -> list[Choice]:
    random = Random(3)
    return [router.choose("faq", situation, random, 0.0) for _ in range(count)]


HELPED = {Arm.AUGMENTED: 0.93, Arm.SMALL: 0.5, Arm.LARGE: 0.93}
HELPLESS = {Arm.AUGMENTED: 0.5, Arm.SMALL: 0.5, Arm.LARGE: 0.93}


# Cold start


def test_at_first_the_large_model_answers_but_for_a_small_fixed_rate() -> None:
    found = choices(Router(), ASKED, 5000)
    arms = Counter(choice.arm for choice in found)
    assert arms[Arm.AUGMENTED] + arms[Arm.SMALL] == pytest.approx(0.02 * 5000, rel=0.3)
    assert min(arms.values()) > 25
    assert all(choice.judge == (choice.reason is Reason.EXPLORED) for choice in found)
    assert {choice.reason for choice in found if choice.arm is Arm.LARGE} == {Reason.COLD}


def test_where_a_second_run_can_be_had_no_caller_is_explored_on() -> None:
    found = choices(Router(), replace(ASKED, double_run=True), 5000)
    assert {choice.arm for choice in found} == {Arm.LARGE}
    sampled = Counter(choice.sampled_runner_up for choice in found)
    assert sampled[Arm.AUGMENTED] + sampled[Arm.SMALL] == pytest.approx(0.02 * 5000, rel=0.3)
    assert all(choice.judge == (choice.sampled_runner_up is not None) for choice in found)


def test_an_arm_takes_part_only_with_rewards_enough() -> None:
    router = Router(Terms(explore=0.0))
    for count in range(25):
        expected = {Arm.LARGE} if router.scores("faq", ASKED, Random(1), 0.0)[0].rewards < 20 else {Arm.AUGMENTED}
        assert {choice.arm for choice in choices(router, ASKED, 10)} == expected, count
        router.reward("faq", Arm.AUGMENTED, ASKED, 1.0)
    assert {choice.arm for choice in choices(router, ASKED, 10)} == {Arm.AUGMENTED}


def test_an_arm_that_seems_bad_is_tried_seldom_but_never_given_up() -> None:
    router = Router()
    for _ in range(15):
        for arm in (Arm.AUGMENTED, Arm.SMALL):
            router.reward("faq", arm, ASKED, 0.0)
    tried = sum(choice.arm is not Arm.LARGE for choice in choices(router, ASKED, 10_000))
    assert tried == pytest.approx(0.002 * 10_000, rel=0.6)


def test_a_large_model_that_is_always_right_locks_no_arm_out() -> None:
    router, random, tried = Router(), Random(5), Counter[Arm]()
    for _ in range(6000):
        choice = router.choose("faq", ASKED, random, 0.0)
        tried[choice.arm] += 1
        if choice.arm is not Arm.LARGE or random.random() < 0.05:
            router.reward("faq", choice.arm, ASKED, 1.0)
    assert min(tried.values()) > 35


@pytest.mark.parametrize("bad", [1, 4])
def test_a_few_bad_words_are_no_verdict(bad: int) -> None:
    router = Router()
    for _ in range(bad):
        router.reward("faq", Arm.AUGMENTED, ASKED, 0.0)
    tried = sum(choice.arm is Arm.AUGMENTED for choice in choices(router, ASKED, 10_000))
    assert tried == pytest.approx(0.01 * 10_000, rel=0.4)


def test_what_an_arm_costs_is_told_by_prices_where_they_are_known() -> None:
    router = Router()
    usual = [router.cost(arm, ASKED) for arm in Arm]
    assert usual == [0.15, 0.1, 1.0]
    told = [[router.cost(arm, replace(ASKED, small_cost=cost)) for arm in Arm] for cost in (0.5, 0.0, 3.0, math.nan)]
    assert [pytest.approx(row) for row in told] == [[0.75, 0.5, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], usual]
    dear = replace(ASKED, small_cost=1.0, load=2.0)
    priced = {one.arm: one.price for one in taught(HELPED).scores("faq", dear, Random(1), 0.0)}
    assert priced[Arm.SMALL] == priced[Arm.LARGE]


def test_without_examples_the_augmented_arm_cannot_be_had() -> None:
    router = taught(HELPED)
    assert {choice.arm for choice in choices(router, BARE)} <= {Arm.SMALL, Arm.LARGE}
    assert [one.arm for one in router.choose("faq", BARE, Random(1), 0.0).scores] == [Arm.SMALL, Arm.LARGE]


# What is learnt


def test_the_small_model_answers_where_examples_make_it_as_good() -> None:
    found = choices(taught(HELPED), ASKED)
    assert {choice.arm for choice in found} == {Arm.AUGMENTED}
    assert {choice.reason for choice in found} <= {Reason.BEST, Reason.OPTIMISM}


def test_the_large_model_answers_where_examples_do_not_help() -> None:
    found = choices(taught(HELPLESS), ASKED)
    assert {choice.arm for choice in found} == {Arm.LARGE}


def test_each_category_learns_by_itself() -> None:
    router = taught(HELPED)
    arms = Counter(router.choose("code", ASKED, Random(number), 0.0).arm for number in range(200))
    assert arms[Arm.LARGE] > 180


def test_what_is_like_enough_is_told_from_what_is_not() -> None:
    router, random = Router(Terms(explore=0.0)), Random(5)
    for _ in range(600):
        asked = replace(ASKED, max_similarity=random.uniform(0.5, 1.0))
        router.reward("faq", Arm.AUGMENTED, asked, float(asked.max_similarity > 0.75))
        router.reward("faq", Arm.LARGE, asked, float(random.random() < 0.9))
    near = choices(router, replace(ASKED, max_similarity=0.97), 50)
    far = choices(router, replace(ASKED, max_similarity=0.55), 50)
    assert {choice.arm for choice in near} == {Arm.AUGMENTED}
    assert {choice.arm for choice in far} == {Arm.LARGE}


def test_what_was_learnt_fades_and_what_is_new_counts() -> None:
    router, random = taught(HELPED, count=400, terms=Terms(memory=300.0, explore=0.0)), Random(9)
    for _ in range(300):
        router.reward("faq", Arm.AUGMENTED, ASKED, float(random.random() < 0.3))
        router.reward("faq", Arm.LARGE, ASKED, float(random.random() < 0.93))
    assert {choice.arm for choice in choices(router, ASKED, 50)} == {Arm.LARGE}
    for _ in range(600):
        router.reward("faq", Arm.AUGMENTED, ASKED, 1.0)
        router.reward("faq", Arm.LARGE, ASKED, float(random.random() < 0.93))
    assert {choice.arm for choice in choices(router, ASKED, 50)} == {Arm.AUGMENTED}


def test_an_arm_that_nobody_asked_for_long_is_cold_again() -> None:
    router = taught(HELPED)
    for _ in range(3000):
        router.reward("faq", Arm.LARGE, ASKED, 0.5)
    assert not router.scores("faq", ASKED, Random(1), 0.0)[0].known


def known_until(router: Router, quality: float, most: int) -> int:
    """Return after how many rewards of this quality the augmented arm is not known any more."""
    random = Random(11)
    for count in range(most):
        if not router.scores("faq", ASKED, random, 0.0)[0].known:
            return count
        router.reward("faq", Arm.AUGMENTED, ASKED, float(random.random() < quality))
    return most


def test_where_quality_falls_the_arm_is_cold_within_dozens_of_rewards_however_much_was_learnt() -> None:
    assert known_until(taught(HELPED, count=700), 0.4, 500) < 40
    assert known_until(taught(HELPED, count=700, terms=Terms(alarm=math.inf)), 0.4, 500) == 500


def test_where_nothing_changes_there_is_hardly_ever_an_alarm() -> None:
    router, random, alarms, before = taught({Arm.AUGMENTED: 0.8}, count=300), Random(12), 0, 0.0
    for _ in range(3000):
        router.reward("faq", Arm.AUGMENTED, ASKED, float(random.random() < 0.8))
        weight = router.scores("faq", ASKED, random, 0.0)[0].rewards
        alarms += weight < before - 5
        before = weight
    assert alarms <= 3000 / math.exp(6)


def test_an_arm_that_is_not_known_yet_raises_no_alarm() -> None:
    router = Router()
    for count in range(1, 15):
        router.reward("faq", Arm.LARGE, ASKED, 0.0)
        assert router.scores("faq", ASKED, Random(1), 0.0)[-1].rewards == pytest.approx(count, rel=0.02)


@pytest.mark.parametrize(
    ("value", "weight"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan)]
)
def test_what_is_no_reward_teaches_nothing(value: float, weight: float) -> None:
    router = taught(HELPED)
    before = router.to_bytes()
    router.reward("faq", Arm.SMALL, ASKED, value, weight)
    assert router.to_bytes() == before


def test_a_reward_beyond_the_range_counts_as_its_end() -> None:
    one, other = Router(), Router()
    one.reward("faq", Arm.SMALL, ASKED, 7.0)
    other.reward("faq", Arm.SMALL, ASKED, 1.0)
    assert one.to_bytes() == other.to_bytes()


# Load and costs


def shares(router: Router, loads: list[float]) -> list[float]:
    return [
        sum(choice.arm is Arm.LARGE for choice in choices(router, replace(ASKED, load=load), 300)) / 300
        for load in loads
    ]


def test_load_moves_traffic_away_from_the_large_model_and_never_back() -> None:
    router = taught({Arm.AUGMENTED: 0.8, Arm.SMALL: 0.4, Arm.LARGE: 0.95})
    found = shares(router, [0.0, 0.7, 0.75, 0.8, 0.9, 1.0, 1.2, 5.0])
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (1.0, 0.0)
    assert found[0] == found[1]  # up to L_0 only quality counts
    loaded = router.choose("faq", BUSY, Random(1), 0.0)
    assert (loaded.arm, loaded.reason) == (Arm.AUGMENTED, Reason.LOAD)


def test_load_never_buys_more_quality_than_it_is_worth() -> None:
    router = taught({Arm.AUGMENTED: 0.5, Arm.SMALL: 0.4, Arm.LARGE: 0.95})
    assert shares(router, [1.0, 2.0, 100.0, math.inf]) == [1.0] * 4


def test_a_load_that_is_no_number_is_none() -> None:
    router = Router()
    assert router.pressure(math.nan) == router.pressure(0.0) == Terms().thrift


def test_of_equal_quality_the_cheaper_answers() -> None:
    equal = taught(dict.fromkeys(Arm, 1.0))
    assert Arm.LARGE not in {choice.arm for choice in choices(equal, ASKED)}
    dear = taught(dict.fromkeys(Arm, 1.0), terms=Terms(costs={Arm.AUGMENTED: 2.0, Arm.SMALL: 2.0, Arm.LARGE: 1.0}))
    assert {choice.arm for choice in choices(dear, ASKED)} == {Arm.LARGE}


def test_every_score_can_be_worked_out_from_what_is_told() -> None:
    router = taught(HELPED)
    router.ran("faq", Arm.AUGMENTED, 0.0, ok=False)
    terms = Terms()
    pressure = terms.thrift + terms.lambda_0 * math.tanh(terms.gamma * (1.2 - terms.load_from))
    for one in router.choose("faq", BUSY, Random(1), 0.0).scores:
        assert one.price == pytest.approx(pressure * terms.costs[one.arm])
        assert one.score == pytest.approx(one.quality * one.reliability - one.price)
        assert one.index == pytest.approx((one.quality + 0.5 * one.spread) * one.reliability - one.price)


def test_who_answers_has_the_highest_index_and_the_reason_says_if_not_the_highest_score() -> None:
    router, random = taught({Arm.AUGMENTED: 0.88, Arm.SMALL: 0.86, Arm.LARGE: 0.93}, count=40), Random(2)
    reasons = set()
    for _ in range(300):
        asked = replace(ASKED, max_similarity=random.uniform(0.4, 1.0), question_tokens=random.randrange(1, 2000))
        choice = router.choose("faq", asked, random, 0.0)
        index = {one.arm: one.index for one in choice.scores}
        score = {one.arm: one.score for one in choice.scores}
        assert index[choice.arm] == max(index.values())
        assert (choice.reason is Reason.BEST) == (score[choice.arm] == max(score.values()))
        reasons.add(choice.reason)
    assert reasons == {Reason.BEST, Reason.OPTIMISM}


def test_regret_is_what_exploring_is_expected_to_cost() -> None:
    router = taught(HELPLESS)
    best = router.choose("faq", ASKED, Random(1), 0.0)
    assert best.regret == 0.0
    worse = replace(best, arm=Arm.SMALL)
    scores = {one.arm: one.score for one in best.scores}
    assert worse.regret == pytest.approx(scores[Arm.LARGE] - scores[Arm.SMALL])
    explored = next(one for one in choices(Router(), ASKED, 1000) if one.reason is Reason.EXPLORED)
    assert explored.regret > 0.2


# Failures


def test_an_arm_that_fails_pays_at_once_and_has_it_back_after_minutes() -> None:
    router = taught(HELPED)
    assert router.choose("faq", ASKED, Random(1), 0.0).arm is Arm.AUGMENTED
    for _ in range(3):
        router.ran("faq", Arm.AUGMENTED, 0.0, ok=False)
    assert router.choose("faq", ASKED, Random(1), 0.0).arm is Arm.LARGE
    assert router.choose("faq", ASKED, Random(1), 30.0).arm is Arm.LARGE
    assert router.choose("faq", ASKED, Random(1), 1800.0).arm is Arm.AUGMENTED


def test_an_outage_leaves_what_is_known_of_quality_alone() -> None:
    router = taught(HELPED)
    before = router.to_bytes()
    for second in range(600):
        router.ran("faq", Arm.AUGMENTED, float(second), ok=False)
    assert router.to_bytes() == before
    assert router.scores("faq", ASKED, Random(1), 600.0)[0].reliability < 0.05
    assert router.scores("faq", ASKED, Random(1), 3600.0)[0].reliability > 0.9


def test_an_arm_that_is_down_is_not_tried() -> None:
    router = Router()
    for arm in (Arm.AUGMENTED, Arm.SMALL):
        for _ in range(10):
            router.ran("faq", arm, 0.0, ok=False)
    assert {choice.arm for choice in choices(router, ASKED, 1000)} == {Arm.LARGE}


def test_a_large_model_that_is_down_gives_way() -> None:
    router = taught({Arm.AUGMENTED: 0.8, Arm.SMALL: 0.5, Arm.LARGE: 0.95})
    for _ in range(10):
        router.ran("faq", Arm.LARGE, 0.0, ok=False)
    assert router.choose("faq", ASKED, Random(1), 0.0).arm is Arm.AUGMENTED


def test_runs_are_counted_as_they_fade() -> None:
    runs = Runs()
    assert runs.share(0.0) == pytest.approx(0.98)
    for _ in range(100):
        runs.take(0.0, ok=True)
    runs.take(0.0, ok=False)
    assert runs.share(0.0) == pytest.approx((100 + 4.9) / 106)
    assert runs.share(-50.0) == runs.share(0.0)  # a clock that steps back undoes nothing
    assert runs.share(1e9) == pytest.approx(0.98)


# Chances


def score(arm: Arm, value: float, spread: float) -> ArmScore:
    return ArmScore(
        arm=arm,
        quality=value,
        spread=spread,
        reliability=1.0,
        price=0.0,
        score=value,
        index=value,
        rewards=50.0,
        known=True,
    )


@pytest.mark.parametrize(
    "told",
    [
        [(0.8, 0.05), (0.6, 0.1), (0.82, 0.04)],
        [(0.5, 0.3), (0.5, 0.001), (0.5, 0.1)],
        [(0.9, 0.02), (0.1, 0.02)],
        [(0.7, 0.0), (0.6, 0.0), (0.5, 0.0)],
    ],
)
def test_chances_agree_with_counting(told: list[tuple[float, float]]) -> None:
    found = chances_of([score(arm, *one) for arm, one in zip(Arm, told, strict=False)])
    random, wins = np.random.default_rng(1), Counter[int]()
    draws = np.stack([random.normal(mean, spread, 40_000) for mean, spread in told])
    wins.update(draws.argmax(axis=0).tolist())
    assert sum(found.values()) == pytest.approx(1.0)
    for at, arm in enumerate(found):
        assert found[arm] == pytest.approx(wins[at] / 40_000, abs=0.03)


def test_where_the_chances_are_near_even_the_runner_up_is_asked_for_and_a_judge() -> None:
    router = taught(dict.fromkeys(Arm, 0.8), count=60)
    close = router.choose("faq", replace(ASKED, double_run=True), Random(1), 0.0)
    assert float(np.std(list(close.chances.values()))) < 0.1
    assert close.judge
    assert close.sampled_runner_up not in (None, close.arm)
    alone = router.choose("faq", ASKED, Random(1), 0.0)
    assert (alone.judge, alone.sampled_runner_up) == (True, None)
    clear = taught(HELPLESS).choose("faq", replace(ASKED, double_run=True), Random(1), 0.0)
    assert (clear.judge, clear.sampled_runner_up) == (False, None)


# What is kept


def test_a_router_survives_being_written() -> None:
    router = taught(HELPED)
    read = Router.from_bytes(router.to_bytes())
    assert read.to_bytes() == router.to_bytes()
    for seed in range(20):
        assert read.choose("faq", BUSY, Random(seed), 0.0) == router.choose("faq", BUSY, Random(seed), 0.0)
    for one in (router, read):
        one.reward("faq", Arm.SMALL, ASKED, 0.4)
    assert read.to_bytes() == router.to_bytes()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80",
        b"\xff" * 40,
        msgspec.msgpack.encode({"version": VERSION + 1, "categories": {}}),
        msgspec.msgpack.encode({"version": VERSION, "categories": {}, "more": 1}),
        msgspec.msgpack.encode({"version": VERSION, "categories": {"faq": {"huge": {}}}}),
        msgspec.msgpack.encode(
            {"version": VERSION, "categories": {"faq": {"small": {"weight": 1.0, "squares": [], "products": []}}}}
        ),
        msgspec.msgpack.encode(
            {
                "version": VERSION,
                "categories": {
                    "faq": {"small": {"weight": math.nan, "squares": [0.0] * DIM * DIM, "products": [0.0] * DIM}}
                },
            }
        ),
    ],
)
def test_a_router_of_another_version_or_damaged_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        Router.from_bytes(raw)
