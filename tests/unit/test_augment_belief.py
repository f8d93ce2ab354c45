"""What an arm is believed to be good for: features of a situation, and sums of what was rewarded."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from cacheproxy.augment.arms import (
    Situation,
    features,
)
from cacheproxy.augment.belief import DIM, Belief, Prior, Sums
from cacheproxy.errors import ConfigError

ASKED = Situation(max_similarity=0.8, mean_helpfulness=0.6, examples=3, question_tokens=40, agreement=0.5)
BARE = Situation(max_similarity=0.0, mean_helpfulness=0.0, examples=0, question_tokens=40)


@pytest.mark.parametrize(
    "situation",
    [
        ASKED,
        BARE,
        replace(ASKED, max_similarity=math.nan, mean_helpfulness=-math.inf, question_tokens=10**12),
        replace(ASKED, max_similarity=9.0, mean_helpfulness=9.0, examples=10**6, question_tokens=-5),
    ],
)
def test_features_are_finite_and_bounded(situation: Situation) -> None:
    row = features(situation)
    assert row.shape == (DIM,)
    assert row[0] == 1.0
    assert bool((np.abs(row) <= 1.5).all())


def test_without_examples_nothing_is_said_of_them() -> None:
    strange = replace(BARE, max_similarity=0.9, mean_helpfulness=0.9, agreement=0.9)
    assert features(strange).tolist() == features(BARE).tolist()


def test_one_example_agrees_with_nothing() -> None:
    one = replace(ASKED, examples=1)
    assert features(replace(one, agreement=1.0)).tolist() == features(replace(one, agreement=0.0)).tolist()
    several = [float(features(replace(ASKED, agreement=share))[-1]) for share in (0.0, 0.5, 1.0)]
    assert several == [-1.0, 0.0, 1.0]


def test_a_belief_is_the_posterior_of_a_linear_model() -> None:
    belief, row = Belief(Prior(mean=0.5, spread=0.3)), np.eye(DIM)[0]
    assert belief.expects(row) == pytest.approx((0.5, 0.3))
    for reward in (1.0, 1.0, 0.0):
        belief.learn(row, reward, 1.0)
    precision = 1 / 0.09 + 3 / 0.16
    mean, spread = belief.expects(row)
    assert mean == pytest.approx((0.5 / 0.09 + 2 / 0.16) / precision)
    assert spread == pytest.approx(precision**-0.5)
    assert belief.weight == 3.0


def test_a_belief_that_fades_becomes_its_prior() -> None:
    belief, row = Belief(Prior(mean=0.5, spread=0.3)), features(ASKED)
    before = belief.expects(row)
    for _ in range(50):
        belief.learn(row, 1.0, 1.0)
    belief.fade(1e-9)
    assert belief.expects(row) == pytest.approx(before)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": -1.0},
        {"squares": (0.0,)},
        {"products": ()},
        {"squares": tuple([-5.0, *[0.0] * (DIM * DIM - 1)])},
        {"squares": tuple([0.0, 1.0, *[0.0] * (DIM * DIM - 2)])},
    ],
)
def test_sums_that_no_rewards_can_have_are_refused(changes: dict[str, Any]) -> None:
    sums = Sums(weight=1.0, squares=(0.0,) * DIM * DIM, products=(0.0,) * DIM)
    Belief.of(sums, Prior(mean=0.5, spread=0.3))
    with pytest.raises(ConfigError):
        Belief.of(msgspec.structs.replace(sums, **changes), Prior(mean=0.5, spread=0.3))
