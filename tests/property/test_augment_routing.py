from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.augment.arms import Arm, Reason, Router, Situation, Terms, chances_of
from cacheproxy.augment.constraint import Limit, constrained, within
from cacheproxy.augment.observed import Observed
from cacheproxy.augment.rewards import compiles, exact, valid_json
from cacheproxy.augment.worth import Standing, heard, keep, offloaded, replay_order, replay_pays, replayed, used

UNIT = st.floats(0.0, 1.0)
ANY = st.floats(allow_nan=True, allow_infinity=True)

situations = st.builds(
    Situation,
    max_similarity=st.one_of(UNIT, ANY),
    mean_helpfulness=st.one_of(UNIT, ANY),
    examples=st.integers(0, 8),
    question_tokens=st.integers(0, 10**6),
    load=st.one_of(st.floats(0.0, 3.0), ANY),
    double_run=st.booleans(),
)
told = st.lists(st.tuples(st.sampled_from(Arm), situations, UNIT, st.floats(0.01, 1.0)), max_size=60)
costs = st.fixed_dictionaries({arm: st.floats(0.0, 3.0) for arm in Arm})


def taught(rewards: list[tuple[Arm, Situation, float, float]], terms: Terms | None = None) -> Router:
    router = Router(terms)
    for arm, situation, value, weight in rewards:
        router.reward("faq", arm, situation, value, weight)
    return router


@given(told, costs, situations, st.integers(), st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.floats(0.0, 5.0))
def test_a_higher_load_never_chooses_a_dearer_arm(
    rewards: list[tuple[Arm, Situation, float, float]],
    prices: dict[Arm, float],
    asked: Situation,
    seed: int,
    load: float,
    more: float,
    enough: float,
) -> None:
    terms = Terms(costs=prices, enough=enough, explore=0.3)
    router = taught(rewards, terms)
    light = router.choose("faq", replace(asked, load=load), Random(seed), 0.0)
    heavy = router.choose("faq", replace(asked, load=load + more), Random(seed), 0.0)
    assert prices[heavy.arm] <= prices[light.arm] + 1e-9


@given(told, situations, st.integers(), st.floats(0.0, 60.0))
def test_a_choice_is_of_what_can_be_had_and_explains_itself(
    rewards: list[tuple[Arm, Situation, float, float]], asked: Situation, seed: int, enough: float
) -> None:
    choice = taught(rewards, Terms(enough=enough)).choose("faq", asked, Random(seed), 0.0)
    scores = {one.arm: one for one in choice.scores}
    assert choice.arm in scores
    assert (Arm.AUGMENTED in scores) == (asked.examples > 0)
    assert choice.sampled_runner_up is None or (asked.double_run and choice.sampled_runner_up in scores)
    assert choice.sampled_runner_up != choice.arm
    assert scores[choice.arm].known or choice.reason is Reason.EXPLORED
    assert choice.reason is not Reason.EXPLORED or not asked.double_run
    for one in choice.scores:
        assert 0.0 <= one.quality <= 1.0
        assert one.spread >= 0.0
        assert 0.0 <= one.reliability <= 1.0
    if choice.chances:
        assert sum(choice.chances.values()) == pytest.approx(1.0)
        assert set(choice.chances) == {arm for arm, one in scores.items() if one.known}


@given(told, situations, st.integers())
def test_what_is_written_chooses_as_what_was_learnt(
    rewards: list[tuple[Arm, Situation, float, float]], asked: Situation, seed: int
) -> None:
    router = taught(rewards, Terms(enough=3.0))
    read = Router.from_bytes(router.to_bytes(), Terms(enough=3.0))
    assert read.choose("faq", asked, Random(seed), 0.0) == router.choose("faq", asked, Random(seed), 0.0)


@given(told, situations, st.floats(0.001, 1.0))
def test_a_good_answer_never_makes_its_arm_look_worse_there(
    rewards: list[tuple[Arm, Situation, float, float]], asked: Situation, weight: float
) -> None:
    router = taught(rewards, Terms(memory=1e12))  # fading moves what is expected toward the prior, either way
    at = [one.arm for one in router.scores("faq", asked, Random(1), 0.0)].index(Arm.LARGE)
    before = router.scores("faq", asked, Random(1), 0.0)[at]
    router.reward("faq", Arm.LARGE, asked, 1.0, weight)
    after = router.scores("faq", asked, Random(1), 0.0)[at]
    assert after.quality >= min(before.quality, 1.0) - 1e-6
    assert after.spread <= before.spread + 1e-6


runs = st.lists(
    st.tuples(st.sampled_from(Arm), st.floats(1e-3, 1e3), st.floats(0.0, 10.0), st.floats(0.0, 600.0)), max_size=40
)
limits = st.builds(
    Limit,
    latency_s=st.none() | st.floats(1e-3, 1e3),
    usd=st.none() | st.floats(1e-9, 10.0),
    least_quality=UNIT,
)


@given(told, situations, st.integers(), runs, limits)
def test_within_limits_the_arm_is_one_that_most_probably_keeps_them(
    rewards: list[tuple[Arm, Situation, float, float]],
    asked: Situation,
    seed: int,
    seen: list[tuple[Arm, float, float, float]],
    limit: Limit,
) -> None:
    router, observed = taught(rewards, Terms(enough=1.0)), Observed()
    for arm, seconds, usd, at in seen:
        observed.note("faq", arm, seconds, usd, at)
    choice = router.choose("faq", asked, Random(seed), 600.0)
    estimates = observed.estimates("faq", 600.0)
    found = constrained(limit, choice, estimates)
    chance = {arm: within(limit, estimates.get(arm)) for arm in Arm}
    assert all(0.0 <= one <= 1.0 for one in chance.values())
    if not limit:
        assert found is choice
        return
    scores = {one.arm: one for one in choice.scores}
    able = {Arm.LARGE} | {
        arm for arm, one in scores.items() if one.known and one.quality * one.reliability >= limit.least_quality
    }
    assert found.arm in able
    chance = {arm: chance[arm] * scores[arm].reliability for arm in able}
    assert chance[found.arm] >= max(chance.values()) - 0.021


@given(limits, runs, st.floats(1.0, 10.0))
def test_a_wider_limit_is_never_less_probable_to_be_kept(
    limit: Limit, seen: list[tuple[Arm, float, float, float]], wider: float
) -> None:
    observed = Observed()
    for arm, seconds, usd, at in seen:
        observed.note("faq", arm, seconds, usd, at)
    looser = replace(
        limit,
        latency_s=limit.latency_s and limit.latency_s * wider,
        usd=limit.usd and limit.usd * wider,
    )
    for one in observed.estimates("faq", 600.0).values():
        assert within(looser, one) >= within(limit, one) - 0.01


@given(st.lists(st.tuples(UNIT, st.floats(1e-3, 1.0)), min_size=2, max_size=3))
def test_chances_are_a_distribution(normals: list[tuple[float, float]]) -> None:
    scores = taught([]).scores("faq", SITUATION, Random(1), 0.0)
    told_scores = [
        replace(one, score=mean, spread=spread, reliability=1.0)
        for one, (mean, spread) in zip(scores, normals, strict=False)
    ]
    found = chances_of(told_scores)
    assert sum(found.values()) == pytest.approx(1.0)
    assert all(0.0 <= one <= 1.0 for one in found.values())


SITUATION = Situation(max_similarity=0.8, mean_helpfulness=0.5, examples=3, question_tokens=10)

standings = st.builds(
    Standing,
    entry_id=st.uuids().map(str),
    tenant=st.just("t"),
    category=st.just("faq"),
    tokens=st.integers(0, 500),
    since_s=st.just(0.0),
    at_s=st.floats(0.0, 1e6),
    quality=UNIT,
    words=st.floats(0.0, 100.0),
    offloads=st.floats(0.0, 1e3),
    uses=st.floats(0.0, 1e3),
    loss=UNIT,
    replays=st.integers(0, 8),
    better=UNIT,
    pinned=st.booleans(),
)


@given(st.lists(standings, max_size=30, unique_by=lambda one: one.entry_id), st.integers(-5, 5000), st.floats(0, 1e6))
def test_what_is_kept_never_exceeds_the_capacity_and_nobody_is_lost(
    some: list[Standing], capacity: int, now_s: float
) -> None:
    kept = keep(some, capacity, now_s)
    assert kept.tokens == sum(one.tokens for one in some if one.entry_id in kept.stay) <= max(0, capacity)
    assert sorted([*kept.stay, *kept.dropped]) == sorted(one.entry_id for one in some)


@given(st.lists(standings, max_size=30), st.floats(0.0, 5.0), st.integers(0, 10), st.floats(0, 1e6))
def test_who_is_asked_again_pays_and_was_not_asked_too_often(
    some: list[Standing], cost: float, most: int, now_s: float
) -> None:
    found = replay_order(some, cost, most, now_s)
    assert len(found) <= most
    for one in found:
        assert replay_pays(one, cost)
        assert one.replays < 5
    saved = [one.better * one.loss * one.uses for one in found]
    assert saved == sorted(saved, reverse=True)


@given(standings, st.lists(st.tuples(st.sampled_from(["hear", "use", "offload", "replay"]), ANY, UNIT), max_size=30))
def test_numbers_of_an_example_stay_in_their_ranges(one: Standing, deeds: list[tuple[str, float, float]]) -> None:
    now_s = one.at_s
    for deed, strange, share in deeds:
        now_s += share * 3600
        match deed:
            case "hear":
                one = heard(one, strange, share)
            case "use":
                one = used(one, share, now_s)
            case "offload":
                one = offloaded(one, share, now_s)
            case _:
                one = replayed(one, share)
        assert 0.0 <= one.quality <= 1.0
        assert 0.0 <= one.loss <= 1.0
        assert 0.0 <= one.better <= 1.0
        assert one.offloads >= 0.0
        assert one.uses >= 0.0


@settings(max_examples=60)
@given(st.text(max_size=300), st.text(max_size=40))
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_checkers_say_something_of_any_text_or_nothing(answer: str, reference: str) -> None:
    for found in (
        exact(answer, reference),
        valid_json(answer),
        valid_json(f"{{{answer}"),
        compiles(answer),
        compiles(f"```python\n{answer}\n```"),
    ):
        assert found is None or (0.0 <= found.value <= 1.0 and 0.0 < found.weight <= 1.0)
