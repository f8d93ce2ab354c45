"""Trust: how probable it is that an answer is right, given a verifier's probability, an entry, and labels. Pure.

P(right | p, e) = sigmoid(offset + slope * (logit(p) - logit(.9)) + u_e), a hierarchical logistic model in two stages.
The line of a category is that of its entries in the mean; a verifier is calibrated off line, so it is expected to be
the identity. u_e, an entry's own effect given the line, is normal around 0: what is known of its category stands in
until it has labels of its own. Each label moves both posteriors by one Laplace step (Newton's method on one number,
since a label depends on one sum), in constant time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_PIVOT = math.log(0.9 / 0.1)
"""Offset and slope are told apart best where probabilities decide."""
_OFFSET_VARIANCE = 0.5**2
_SLOPE_VARIANCE = 0.3**2
_EFFECT_VARIANCE = 0.8**2
_EDGE = 9.2
"""Log-odds beyond those of 0.9999 count as these: no calibration reaches further."""
_MEMORY = 10_000
"""Labels after which one has faded: verifiers, callers and answers change."""
_STEPS = 8
_PROBIT = math.pi / 8


@dataclass(frozen=True, slots=True)
class Line:
    """A category's posterior: means, variances and covariance of offset and slope."""

    offset: float = _PIVOT
    slope: float = 1.0
    offset_variance: float = _OFFSET_VARIANCE
    slope_variance: float = _SLOPE_VARIANCE
    covariance: float = 0.0


@dataclass(frozen=True, slots=True)
class Effect:
    """An entry's own effect: mean and variance of u_e."""

    mean: float = 0.0
    variance: float = _EFFECT_VARIANCE


NEW = Effect()
"""Of an entry without labels."""
MEAN = Effect(variance=0.0)
"""Of the entries of a category in the mean: of those that nothing speaks against."""


@dataclass(frozen=True, slots=True)
class Belief:
    """Log-odds that an answer is right: mean and variance."""

    mean: float
    variance: float

    @property
    def risk(self) -> float:
        """The expected probability that it is wrong (MacKay, 1992: the logistic-normal integral by its probit)."""
        return _sigmoid(-self.mean / math.sqrt(1.0 + _PROBIT * self.variance))


def place(probability: float) -> float:
    """Return log-odds, from those of 0.0001 to those of 0.9999. NaN counts as 0."""
    if not probability > 0.0:
        return -_EDGE
    if probability >= 1.0:
        return _EDGE
    return max(-_EDGE, min(_EDGE, math.log(probability) - math.log1p(-probability)))


def belief(line: Line, effect: Effect, probability: float) -> Belief:
    """Return what is believed of an answer that a verifier finds right with `probability`."""
    x = place(probability) - _PIVOT
    return Belief(
        mean=line.offset + line.slope * x + effect.mean, variance=max(0.0, _variance(line, x)) + effect.variance
    )


def distrust(effect: Effect) -> Effect:
    """Return an entry's effect as far as it speaks against serving.

    Its right answers say nothing for it beyond what its category says: most who are near to a popular entry ask the
    very same, and trust won by them would be spent on those who do not.
    """
    return Effect(mean=min(0.0, effect.mean), variance=0.0)


def slopes(line: Line, probability: float) -> tuple[float, float, float]:
    """Return the risk in the mean at `probability`, and how it moves with the line's offset and with its slope."""
    x = place(probability) - _PIVOT
    believed = belief(line, MEAN, probability)
    risk = believed.risk
    move = -risk * (1.0 - risk) / math.sqrt(1.0 + _PROBIT * believed.variance)
    return risk, move, move * x


def learn(line: Line, effect: Effect, probability: float, *, right: bool) -> tuple[Line, Effect]:
    """Return the posteriors after one more label of an entry."""
    effect = learn_entry(effect, belief(line, effect, probability), right=right)
    line = _faded(line)
    x = place(probability) - _PIVOT
    before = belief(line, MEAN, probability)
    after = _mode(before, right=right)
    # All of it lies along one direction: what moves the sum moves each part by its share in the sum's variance.
    gain = (after - before.mean) / before.variance
    share = _sigmoid(after) * _sigmoid(-after)
    shrink = share / (1.0 + share * before.variance)
    offset_x = line.offset_variance + line.covariance * x
    slope_x = line.covariance + line.slope_variance * x
    return (
        Line(
            offset=line.offset + offset_x * gain,
            slope=max(0.0, line.slope + slope_x * gain),
            offset_variance=line.offset_variance - shrink * offset_x * offset_x,
            slope_variance=line.slope_variance - shrink * slope_x * slope_x,
            covariance=line.covariance - shrink * offset_x * slope_x,
        ),
        effect,
    )


def learn_entry(effect: Effect, before: Belief, *, right: bool) -> Effect:
    """Return an entry's effect after a label, given what was believed with it; its category learns nothing."""
    after = _mode(before, right=right)
    share = _sigmoid(after) * _sigmoid(-after)
    return Effect(
        mean=effect.mean + effect.variance * (after - before.mean) / before.variance,
        variance=effect.variance - share / (1.0 + share * before.variance) * effect.variance**2,
    )


def _mode(before: Belief, *, right: bool) -> float:
    """Return the most probable log-odds after a label: the root of a falling function, by Newton's method."""
    at = before.mean
    for _ in range(_STEPS):
        chance = _sigmoid(at)
        excess = before.mean + before.variance * (right - chance) - at
        at += excess / (1.0 + before.variance * chance * (1.0 - chance))
    return at


def _faded(line: Line) -> Line:
    """Return the line a little less sure of itself, never less than it was at first.

    What labels added to the precision (the inverse of the covariance) fades; that of the beginning stays (Kulhavy and
    Zarrop, 1993). Each direction fades by itself: one in which nothing was learnt keeps no other from it.
    """
    keep = 1.0 - 1.0 / _MEMORY
    whole = line.offset_variance * line.slope_variance - line.covariance**2
    offset = keep * line.slope_variance / whole + (1.0 - keep) / _OFFSET_VARIANCE
    slope = keep * line.offset_variance / whole + (1.0 - keep) / _SLOPE_VARIANCE
    both = -keep * line.covariance / whole
    whole = offset * slope - both**2
    return Line(
        offset=line.offset,
        slope=line.slope,
        offset_variance=slope / whole,
        slope_variance=offset / whole,
        covariance=-both / whole,
    )


def _variance(line: Line, x: float) -> float:
    return line.offset_variance + 2.0 * line.covariance * x + line.slope_variance * x * x


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    raised = math.exp(x)
    return raised / (1.0 + raised)
