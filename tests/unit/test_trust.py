from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.policy.trust import MEAN, NEW, Effect, Line, belief, learn, place, slopes

probabilities = st.floats(0.0, 1.0)
labels = st.lists(st.tuples(probabilities, st.booleans()), max_size=30)


def learnt(told: list[tuple[float, bool]]) -> tuple[Line, Effect]:
    line, effect = Line(), NEW
    for probability, right in told:
        line, effect = learn(line, effect, probability, right=right)
    return line, effect


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.99])
def test_without_labels_the_verifier_is_believed(probability: float) -> None:
    assert belief(Line(), NEW, probability).mean == pytest.approx(place(probability))


@given(labels, probabilities)
def test_a_right_label_never_lowers_trust_where_it_was_given(told: list[tuple[float, bool]], p: float) -> None:
    line, effect = learnt(told)
    before = belief(line, effect, p)
    after = belief(*learn(line, effect, p, right=True), p)
    assert after.mean >= before.mean - 1e-6
    assert belief(*learn(line, effect, p, right=False), p).mean <= before.mean + 1e-6


@given(labels, probabilities)
def test_risk_never_grows_with_probability(told: list[tuple[float, bool]], p: float) -> None:
    line, effect = learnt(told)
    lower = min(p, 0.98)
    assert belief(line, effect, lower + 0.01).mean >= belief(line, effect, lower).mean - 1e-9


@given(labels)
def test_variances_stay_those_of_a_posterior(told: list[tuple[float, bool]]) -> None:
    line, effect = learnt(told)
    assert 0 < line.offset_variance <= Line().offset_variance + 1e-9
    assert 0 < line.slope_variance <= Line().slope_variance + 1e-9
    assert line.covariance**2 <= line.offset_variance * line.slope_variance * (1 + 1e-6)
    assert 0 < effect.variance <= NEW.variance


def test_an_entry_without_labels_is_trusted_as_its_category_is() -> None:
    line, _ = learnt([(0.9, False)] * 40)
    assert belief(line, MEAN, 0.9).risk > 0.5
    assert belief(Line(), MEAN, 0.9).risk < 0.2


def test_an_entry_with_labels_stands_between_its_own_and_those_of_its_category() -> None:
    line = Line()
    bad = NEW
    for _ in range(60):
        line, _ = learn(line, NEW, 0.9, right=True)
    for _ in range(5):
        line, bad = learn(line, bad, 0.9, right=False)
    pooled = belief(line, MEAN, 0.9).risk
    assert pooled < 0.2 < 0.4 < belief(line, bad, 0.9).risk < 1.0


def test_old_labels_fade() -> None:
    line, _ = learnt([(0.9, True)] * 3000)
    assert line.offset_variance > 1e-4
    for _ in range(400):
        line, _ = learn(line, NEW, 0.9, right=False)
    assert belief(line, MEAN, 0.9).risk > 0.1


@pytest.mark.parametrize("p", [0.7, 0.9, 0.97])
def test_labels_fade_over_ten_thousand_also_where_they_say_nothing_of_the_slope(p: float) -> None:
    line = Line()
    for count in range(40_000):
        line, _ = learn(line, NEW, p, right=count % 10 != 0)
        if count == 20_000:
            sure = belief(line, MEAN, p).variance
    assert belief(line, MEAN, p).variance == pytest.approx(sure, rel=0.2)
    assert belief(line, MEAN, p).variance == pytest.approx(1 / (10_000 * 0.1 * 0.9), rel=0.2)


@given(probabilities)
def test_slopes_are_those_of_the_risk(p: float) -> None:
    step = 1e-4
    risk, by_offset, by_slope = slopes(Line(), p)
    moved = belief(Line(offset=Line().offset + step), MEAN, p).risk
    turned = belief(Line(slope=1 + step), MEAN, p).risk
    assert (moved - risk) / step == pytest.approx(by_offset, rel=0.2, abs=1e-3)
    assert math.copysign(1, turned - risk) == math.copysign(1, by_slope) or abs(by_slope) < 1e-3


@pytest.mark.parametrize("p", [math.nan, -1.0, 0.0, 1.0, 2.0])
def test_no_probability_is_beyond_what_calibration_reaches(p: float) -> None:
    assert abs(place(p)) <= 9.3
