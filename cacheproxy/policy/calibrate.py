"""Calibrate: what each threshold would have done on labelled pairs, and which one to choose. Pure; numpy only.

Similarities are cosines; a pair is served when its similarity is at or above the threshold; its label is true when the
cached answer is right. Undefined ratios (0/0) are None for a single point and NaN inside a curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How pairs fell: served rightly, served wrongly, missed wrongly, missed rightly."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n(self) -> int:
        """All pairs."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def precision(self) -> float | None:
        """Share of hits that are right."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """Share of the pairs that may be served that are."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def hit_rate(self) -> float | None:
        """Share of all pairs that are served."""
        return ratio(self.tp + self.fp, self.n)

    @property
    def false_hit_rate(self) -> float | None:
        """Share of the pairs that must not be served that are."""
        return ratio(self.fp, self.fp + self.tn)

    def f(self, beta: float) -> float | None:
        """F-beta: below 1, precision weighs more than recall."""
        return ratio((1 + beta**2) * self.tp, (1 + beta**2) * self.tp + beta**2 * self.fn + self.fp)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Every distinct threshold, from the highest down, with the weight of right (`tp`) and wrong (`fp`) hits at it.

    `positives` and `negatives` are the weights of all pairs, and at least one of both is above 0.
    """

    thresholds: Floats
    tp: Floats
    fp: Floats
    positives: float
    negatives: float

    @property
    def precision(self) -> Floats:
        """Precision at each threshold."""
        return _ratios(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> Floats:
        """Recall at each threshold; NaN without positives."""
        return _ratios(self.tp, np.full_like(self.tp, self.positives))

    def f(self, beta: float) -> Floats:
        """F-beta at each threshold; NaN without positives."""
        squared = beta**2
        scores = _ratios((1 + squared) * self.tp, self.tp + self.fp + squared * self.positives)
        return scores if self.positives else np.full_like(scores, np.nan)

    def at_base_rate(self, share: float) -> Curve:
        """Return the curve these pairs would give if `share` of them, in (0, 1), were positive.

        Recall and false-hit rate at a threshold stay, precision moves: a cache's traffic has another share than a test.
        Raises ValueError when either label is absent.
        """
        if not self.positives or not self.negatives:
            raise ValueError("another base rate needs pairs of both labels")
        total = self.positives + self.negatives
        up, down = share * total / self.positives, (1 - share) * total / self.negatives
        return Curve(
            thresholds=self.thresholds,
            tp=self.tp * up,
            fp=self.fp * down,
            positives=self.positives * up,
            negatives=self.negatives * down,
        )


def curve(similarities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Curve:
    """Sweep all thresholds over pairs: arrays of shape (n,), n at least 1. Equal similarities share one threshold.

    Raises ValueError when a similarity is not finite or the shapes differ.
    """
    scores = np.asarray(similarities, dtype=np.float64)
    positive = np.asarray(labels, dtype=bool)
    weight = np.ones_like(scores) if weights is None else np.asarray(weights, dtype=np.float64)
    if scores.ndim != 1 or not scores.size or scores.shape != positive.shape or scores.shape != weight.shape:
        raise ValueError(
            f"one label and weight for each of at least one similarity, got {scores.shape}, {positive.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("similarities must be finite")
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], weight[order] * positive[order]
    hits = np.cumsum(weight[order])
    last = np.append(np.flatnonzero(np.diff(scores)), scores.size - 1)
    tp = np.cumsum(right)
    positives = float(tp[-1])
    return Curve(
        thresholds=scores[last],
        tp=tp[last],
        fp=hits[last] - tp[last],
        positives=positives,
        negatives=float(hits[-1]) - positives,
    )


def counts_at(similarities: ArrayLike, labels: ArrayLike, threshold: float) -> Counts:
    """Count what serving at or above one threshold would have done."""
    return counts(np.asarray(similarities) >= threshold, labels)


def counts(served: ArrayLike, labels: ArrayLike) -> Counts:
    """Count decisions against labels: two boolean arrays of shape (n,)."""
    hit, positive = np.asarray(served, dtype=bool), np.asarray(labels, dtype=bool)
    return Counts(
        tp=int(np.sum(hit & positive)),
        fp=int(np.sum(hit & ~positive)),
        fn=int(np.sum(~hit & positive)),
        tn=int(np.sum(~hit & ~positive)),
    )


def average_precision(swept: Curve) -> float | None:
    """Return the area under precision over recall, as steps (no interpolation); None without positives."""
    if not swept.positives:
        return None
    return float(np.sum(np.diff(swept.recall, prepend=0.0) * swept.precision))


def best_f(swept: Curve, beta: float) -> tuple[float, float] | None:
    """Return (best F-beta, the highest threshold that gives it); None without positives."""
    if not swept.positives:
        return None
    scores = swept.f(beta)
    at = int(np.argmax(scores))
    return float(scores[at]), float(swept.thresholds[at])


def best_net_benefit(swept: Curve, wrong_cost: float) -> tuple[float, float] | None:
    """Return (net benefit of a pair, the highest threshold that gives it); None when serving nothing is as good.

    A right hit counts 1, a wrong one -`wrong_cost`, a miss 0: just at the best threshold, hits are right about
    `wrong_cost` times in `wrong_cost` + 1. Vickers and Elkin, "Decision curve analysis" (2006), equation 1.
    """
    benefit = (swept.tp - wrong_cost * swept.fp) / (swept.positives + swept.negatives)
    at = int(np.argmax(benefit))
    return (float(benefit[at]), float(swept.thresholds[at])) if benefit[at] > 0 else None


def threshold_for_precision(swept: Curve, target: float, confidence: float | None = None) -> float | None:
    """Return the smallest threshold whose precision is at least `target`, or None when none reaches it.

    With `confidence`, such as 0.95, the lower end of precision's two-sided Wilson interval must reach it, so that a few
    lucky hits do not count. That reads weights as counts: it is for unweighted curves.
    """
    reached = swept.precision if confidence is None else wilson_bounds(swept.tp, swept.tp + swept.fp, confidence)[0]
    good = np.flatnonzero(reached >= target)
    return float(swept.thresholds[good[-1]]) if good.size else None


def wilson_bounds(successes: Floats, trials: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Return the lower and upper ends of the two-sided Wilson score interval; NaN where there was no trial.

    Wilson (1927), as in Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion" (2001).
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = _ratios(successes, trials)
    with np.errstate(invalid="ignore", divide="ignore"):
        shrink = 1 + z**2 / trials
        centre = (share + z**2 / (2 * trials)) / shrink
        reach = z / shrink * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return np.clip(centre - reach, 0.0, 1.0), np.clip(centre + reach, 0.0, 1.0)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval | None:
    """Return the Wilson interval of one proportion; None when there was no trial."""
    if not trials:
        return None
    low, high = wilson_bounds(np.array([float(successes)]), np.array([float(trials)]), confidence)
    return float(low[0]), float(high[0])


def round_up(threshold: float, digits: int = 3) -> float:
    """Round a threshold away from serving, so that a pack's short number never serves more than the one measured."""
    return float(min(1.0, math.ceil(round(threshold * 10**digits, 6)) / 10**digits))


def ratio(part: float, whole: float) -> float | None:
    """Divide, or return None for 0/0."""
    return part / whole if whole else None


def _ratios(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)
