from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import msgspec
import pytest

from cacheproxy.augment.arms import Arm, ArmScore, Choice, Reason
from cacheproxy.augment.constraint import EVEN, Limit, constrained, within
from cacheproxy.augment.observed import Estimate, Observed
from cacheproxy.errors import ConfigError


def estimate(seconds: float = 1.0, usd: float = 0.01, *, spread: float = 0.5, correlation: float = 0.0) -> Estimate:
    return Estimate(
        runs=100.0,
        log_s=math.log(seconds),
        log_s_spread=spread,
        log_usd=math.log(usd),
        log_usd_spread=spread,
        correlation=correlation,
    )


def score(arm: Arm, quality: float, *, known: bool = True) -> ArmScore:
    return ArmScore(
        arm=arm,
        quality=quality,
        spread=0.05,
        reliability=1.0,
        price=0.0,
        score=quality,
        index=quality,
        rewards=100.0,
        known=known,
    )


SCORES = (score(Arm.AUGMENTED, 0.8), score(Arm.SMALL, 0.6), score(Arm.LARGE, 0.9))
CHOICE = Choice(arm=Arm.LARGE, scores=SCORES, reason=Reason.BEST)
SLOW_LARGE = {Arm.AUGMENTED: estimate(0.5), Arm.SMALL: estimate(0.4), Arm.LARGE: estimate(4.0)}


@pytest.mark.parametrize(
    ("limit", "told", "chance"),
    [
        (Limit(latency_s=1.0), estimate(1.0), 0.5),
        (Limit(usd=0.01), estimate(usd=0.01), 0.5),
        (Limit(latency_s=1.0, usd=0.01), estimate(), 0.25),
        (Limit(latency_s=1.0, usd=0.01), estimate(correlation=0.99), 0.5 - math.acos(0.99) / (2 * math.pi)),
        (Limit(latency_s=1.0, usd=0.01), estimate(correlation=-0.99), 0.5 - math.acos(-0.99) / (2 * math.pi)),
        (Limit(latency_s=1000.0, usd=1000.0), estimate(), 1.0),
        (Limit(latency_s=1e-9, usd=1.0), estimate(), 0.0),
        (Limit(), estimate(1e6), 1.0),
        (Limit(latency_s=1.0), None, EVEN),
    ],
)
def test_the_chance_is_that_of_two_correlated_log_normal_numbers(
    limit: Limit, told: Estimate | None, chance: float
) -> None:
    assert within(limit, told) == pytest.approx(chance, abs=0.01)


def test_the_chance_agrees_with_counting() -> None:
    random, rho, within_both = Random(1), 0.6, 0
    for _ in range(20_000):
        x = random.gauss(0, 1)
        y = rho * x + math.sqrt(1 - rho**2) * random.gauss(0, 1)
        within_both += math.exp(0.5 * x) <= 1.4 and 0.01 * math.exp(0.5 * y) <= 0.008
    found = within(Limit(latency_s=1.4, usd=0.008), estimate(correlation=rho))
    assert found == pytest.approx(within_both / 20_000, abs=0.01)


def test_without_a_limit_the_choice_stands() -> None:
    assert constrained(Limit(), CHOICE, SLOW_LARGE) is CHOICE


def test_the_arm_that_most_probably_finishes_in_time_answers() -> None:
    found = constrained(Limit(latency_s=1.0), CHOICE, SLOW_LARGE)
    assert (found.arm, found.reason) == (Arm.SMALL, Reason.LIMIT)


def test_the_better_one_answers_where_several_finish_in_time() -> None:
    assert constrained(Limit(latency_s=60.0), CHOICE, SLOW_LARGE).arm is Arm.LARGE
    cheap = Choice(arm=Arm.SMALL, scores=SCORES, reason=Reason.LOAD)
    assert constrained(Limit(latency_s=60.0), cheap, SLOW_LARGE).arm is Arm.LARGE
    assert constrained(Limit(latency_s=3.0), CHOICE, SLOW_LARGE).arm is Arm.AUGMENTED


def test_money_counts_as_time_does() -> None:
    dear = {arm: estimate(1.0, usd) for arm, usd in ((Arm.AUGMENTED, 1e-4), (Arm.SMALL, 1e-4), (Arm.LARGE, 1e-2))}
    assert constrained(Limit(usd=1e-3), CHOICE, dear).arm is Arm.AUGMENTED
    assert constrained(Limit(usd=1.0), CHOICE, dear).arm is Arm.LARGE


def test_an_arm_that_answers_badly_or_is_not_known_takes_no_part() -> None:
    limit = Limit(latency_s=1.0, least_quality=0.7)
    assert constrained(limit, CHOICE, SLOW_LARGE).arm is Arm.AUGMENTED
    unknown = replace(CHOICE, scores=(score(Arm.AUGMENTED, 0.9, known=False), *SCORES[1:]))
    assert constrained(limit, unknown, SLOW_LARGE).arm is Arm.LARGE


@pytest.mark.parametrize("reliability", [0.5, 0.88])
def test_an_arm_that_fails_answers_badly_and_late(reliability: float) -> None:
    failing = replace(CHOICE, scores=(SCORES[0], replace(SCORES[1], reliability=reliability), SCORES[2]))
    assert constrained(Limit(latency_s=1.0), failing, SLOW_LARGE).arm is Arm.AUGMENTED


def test_nobody_with_limits_is_explored_on() -> None:
    explored = Choice(
        arm=Arm.SMALL, scores=(score(Arm.SMALL, 0.4, known=False), SCORES[2]), reason=Reason.EXPLORED, judge=True
    )
    assert constrained(Limit(latency_s=1.0), explored, SLOW_LARGE).arm is Arm.LARGE


def test_the_runner_up_is_never_the_arm_that_answers() -> None:
    asked = replace(CHOICE, sampled_runner_up=Arm.SMALL)
    assert constrained(Limit(latency_s=1.0), asked, SLOW_LARGE).sampled_runner_up is None
    asked = replace(CHOICE, sampled_runner_up=Arm.AUGMENTED)
    assert constrained(Limit(latency_s=1.0), asked, SLOW_LARGE).sampled_runner_up is Arm.AUGMENTED


def test_an_arm_never_seen_is_tried_only_where_the_others_more_probably_fail() -> None:
    large_alone = {Arm.LARGE: estimate(1.0)}
    assert constrained(Limit(latency_s=1.2), CHOICE, large_alone).arm is Arm.LARGE
    assert constrained(Limit(latency_s=0.5), CHOICE, large_alone).arm is Arm.AUGMENTED


def test_what_is_observed_is_what_is_estimated() -> None:
    observed, random = Observed(), Random(2)
    for _ in range(400):
        x = random.gauss(0, 1)
        y = 0.8 * x + 0.6 * random.gauss(0, 1)
        observed.note("faq", Arm.LARGE, 2.0 * math.exp(0.4 * x), 0.01 * math.exp(0.3 * y), 1000.0)
    found = observed.estimate("faq", Arm.LARGE, 1000.0)
    assert found is not None
    assert math.exp(found.log_s) == pytest.approx(2.0, rel=0.1)
    assert found.log_s_spread == pytest.approx(0.4, abs=0.05)
    assert math.exp(found.log_usd) == pytest.approx(0.01, rel=0.1)
    assert found.correlation == pytest.approx(0.8, abs=0.08)
    assert observed.estimates("faq", 1000.0) == {Arm.LARGE: found}
    assert observed.estimate("code", Arm.LARGE, 1000.0) is None


def test_a_queue_that_builds_up_is_followed_within_minutes() -> None:
    observed = Observed()
    for second in range(600):
        observed.note("faq", Arm.LARGE, 1.0, 0.01, float(second))
    for second in range(600, 1200):
        observed.note("faq", Arm.LARGE, 8.0, 0.01, float(second))
    found = observed.estimate("faq", Arm.LARGE, 1200.0)
    assert found is not None
    assert math.exp(found.log_s) > 4.0
    assert within(Limit(latency_s=1.5), found) < 0.25


def test_what_was_seen_long_ago_says_nothing_any_more() -> None:
    observed = Observed()
    observed.note("faq", Arm.LARGE, 1.0, 0.01, 0.0)
    few = observed.estimate("faq", Arm.LARGE, 60.0)
    assert few is not None
    assert few.log_s_spread > 0.5  # one run does not tell the mean
    assert observed.estimate("faq", Arm.LARGE, 3600.0) is None


@pytest.mark.parametrize(("seconds", "usd"), [(math.nan, 1.0), (1.0, math.inf), (math.inf, 1.0)])
def test_what_is_no_number_is_not_observed(seconds: float, usd: float) -> None:
    observed = Observed()
    observed.note("faq", Arm.LARGE, seconds, usd, 0.0)
    assert observed.estimate("faq", Arm.LARGE, 0.0) is None


def test_an_answer_for_nothing_keeps_every_budget() -> None:
    observed = Observed()
    for _ in range(20):
        observed.note("faq", Arm.SMALL, 0.0, 0.0, 0.0)
    assert within(Limit(latency_s=1.0, usd=0.001), observed.estimate("faq", Arm.SMALL, 0.0)) > 0.99


def test_what_was_observed_survives_being_written() -> None:
    observed = Observed()
    for number in range(10):
        observed.note("faq", Arm.SMALL, 1.0 + number, 0.01, float(number))
    read = Observed.from_bytes(observed.to_bytes())
    assert read.estimates("faq", 10.0) == observed.estimates("faq", 10.0)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        msgspec.msgpack.encode({"version": 2, "categories": {}}),
        msgspec.msgpack.encode({"version": 1}),
        msgspec.msgpack.encode({"version": 1, "categories": {"a": {"huge": {}}}}),
        msgspec.msgpack.encode({"version": 1, "categories": {"a": {"small": {"runs": -1.0}}}}),
        msgspec.msgpack.encode({"version": 1, "categories": {"a": {"small": {"xx": math.nan}}}}),
    ],
)
def test_observations_of_another_version_and_damaged_ones_are_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        Observed.from_bytes(raw)
