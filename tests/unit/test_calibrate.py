from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.policy import calibrate as c

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Highest first: hit right, hit wrong, two at the same similarity (one of each), right, wrong.
SIMILARITIES = [0.95, 0.90, 0.80, 0.80, 0.70, 0.60]
LABELS = [1, 0, 1, 0, 1, 0]


def sample(seed: int, n: int = 400) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    similarities: NDArray[np.float64] = rng.normal(np.where(labels, 0.8, 0.6), 0.15)
    return similarities.clip(-1, 1).round(2), labels


def test_the_curve_counts_by_hand() -> None:
    swept = c.curve(SIMILARITIES, LABELS)
    assert swept.thresholds.tolist() == [0.95, 0.90, 0.80, 0.70, 0.60]
    assert swept.tp.tolist() == [1, 1, 2, 3, 3]
    assert swept.fp.tolist() == [0, 1, 2, 2, 3]
    assert swept.precision.tolist() == [1, 1 / 2, 2 / 4, 3 / 5, 3 / 6]
    assert swept.recall.tolist() == [1 / 3, 1 / 3, 2 / 3, 1, 1]
    assert swept.f(1).tolist() == pytest.approx([2 / 4, 2 / 5, 4 / 7, 6 / 8, 6 / 9])
    assert swept.f(0.5).tolist() == pytest.approx(
        [1.25 * tp / (hits + 0.75) for tp, hits in zip((1, 1, 2, 3, 3), (1, 2, 4, 5, 6), strict=True)]
    )


def test_counts_at_a_threshold_serve_the_tie() -> None:
    counts = c.counts_at(SIMILARITIES, LABELS, 0.8)
    assert (counts.tp, counts.fp, counts.fn, counts.tn, counts.n) == (2, 2, 1, 1, 6)
    assert (counts.precision, counts.hit_rate) == (0.5, 4 / 6)
    assert counts.recall == pytest.approx(2 / 3)
    assert counts.false_hit_rate == pytest.approx(2 / 3)
    assert counts.f(1) == pytest.approx(4 / 7)


def test_not_a_number_is_never_served() -> None:
    assert c.counts_at([float("nan")], [1], -1.0).fn == 1


def test_average_precision_by_hand() -> None:
    # Steps of recall: 1/3 at precision 1, 1/3 at 2/4, 1/3 at 3/5.
    assert c.average_precision(c.curve(SIMILARITIES, LABELS)) == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)


def test_best_f_takes_the_highest_of_equal_thresholds() -> None:
    assert c.best_f(c.curve(SIMILARITIES, LABELS), 1) == (0.75, 0.70)
    assert c.best_f(c.curve([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 1]), 0.5) == pytest.approx((1.25 / 1.5, 0.9))
    assert c.best_f(c.curve([0.9, 0.8], [1, 1]), 1) == (1.0, 0.8)


def test_net_benefit_weighs_wrong_hits_against_right_ones() -> None:
    swept = c.curve([0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 1, 1])
    assert c.best_net_benefit(swept, 1) == pytest.approx((3 / 5, 0.5))
    assert c.best_net_benefit(swept, 2) == pytest.approx((2 / 5, 0.8))
    assert c.best_net_benefit(swept, 10) == pytest.approx((2 / 5, 0.8))
    assert c.best_net_benefit(c.curve([0.9, 0.8], [0, 1]), 1) is None


def test_smallest_threshold_that_keeps_a_precision() -> None:
    swept = c.curve(SIMILARITIES, LABELS)
    assert c.threshold_for_precision(swept, 0.6) == 0.70
    assert c.threshold_for_precision(swept, 0.61) == 0.95
    assert c.threshold_for_precision(c.curve([0.9], [0]), 0.1) is None


def test_a_lucky_hit_does_not_reach_a_precision_with_confidence() -> None:
    lucky = c.curve([0.99, *[0.5] * 10], [1, *[0] * 10])
    assert c.threshold_for_precision(lucky, 0.9) == 0.99
    assert c.threshold_for_precision(lucky, 0.9, confidence=0.95) is None
    many = c.curve([0.99] * 100, [1] * 100)
    assert c.threshold_for_precision(many, 0.95, confidence=0.95) == 0.99


def test_another_base_rate_moves_precision_and_keeps_recall() -> None:
    swept = c.curve(SIMILARITIES, LABELS)
    rare = swept.at_base_rate(0.1)
    assert rare.recall.tolist() == pytest.approx(swept.recall.tolist())
    # At 0.70: recall 1, false-hit rate 2/3.
    assert rare.precision[3] == pytest.approx(0.1 / (0.1 + 0.9 * 2 / 3))
    assert swept.at_base_rate(0.5).tp.tolist() == pytest.approx(swept.tp.tolist())
    with pytest.raises(ValueError, match="both labels"):
        c.curve([0.5], [1]).at_base_rate(0.5)


def test_weights_count_as_copies() -> None:
    weighted = c.curve(SIMILARITIES, LABELS, weights=[2, 1, 3, 1, 0, 1])
    copied = c.curve([0.95, 0.95, 0.9, 0.8, 0.8, 0.8, 0.8, 0.6], [1, 1, 0, 1, 1, 1, 0, 0])
    # A weight of nothing still leaves its threshold on the curve.
    assert weighted.tp[[0, 1, 2, 4]].tolist() == copied.tp.tolist()
    assert weighted.fp[[0, 1, 2, 4]].tolist() == copied.fp.tolist()


def test_undefined_measures_are_none() -> None:
    nothing = c.counts([], [])
    assert (nothing.precision, nothing.recall, nothing.hit_rate, nothing.false_hit_rate, nothing.f(1)) == (None,) * 5
    negatives = c.curve([0.5, 0.4], [0, 0])
    assert c.average_precision(negatives) is None
    assert c.best_f(negatives, 1) is None
    assert c.counts_at([0.5], [1], 0.9).precision is None
    assert c.counts_at([0.5], [1], 0.9).f(1) == 0.0


@pytest.mark.parametrize(
    ("similarities", "labels"), [([], []), ([float("nan")], [1]), ([float("inf")], [0]), ([0.1, 0.2], [1])]
)
def test_a_curve_of_nothing_or_of_nonsense_is_refused(similarities: list[float], labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"finite|one label"):
        c.curve(similarities, labels)


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert c.wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert c.wilson(0, 0) is None


@pytest.mark.parametrize(
    ("threshold", "rounded"), [(0.8601, 0.861), (0.86, 0.86), (0.8, 0.8), (0.9999, 1.0), (1.0000001, 1.0)]
)
def test_a_threshold_is_rounded_away_from_serving(threshold: float, rounded: float) -> None:
    assert c.round_up(threshold) == rounded


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_agrees_with_counting_at_each_threshold(seed: int) -> None:
    similarities, labels = sample(seed)
    swept = c.curve(similarities, labels)
    for at, threshold in enumerate(swept.thresholds):
        counts = c.counts_at(similarities, labels, threshold)
        assert (swept.tp[at], swept.fp[at]) == (counts.tp, counts.fp)
        assert swept.f(0.5)[at] == pytest.approx(counts.f(0.5))


@pytest.mark.parametrize("seed", range(5))
def test_measures_agree_with_scikit_learn(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("sklearn.metrics")
    similarities, labels = sample(seed)
    swept = c.curve(similarities, labels)
    assert c.average_precision(swept) == pytest.approx(metrics.average_precision_score(labels, similarities))
    best, threshold = c.best_f(swept, 0.5) or (0.0, 0.0)
    assert best == pytest.approx(metrics.fbeta_score(labels, similarities >= threshold, beta=0.5))
