"""Outlook: what is known of an arm in a category, for who wants to see it. Pure; nothing is learnt by asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.augment.arms import Arm
from cacheproxy.augment.belief import DIM

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from cacheproxy.augment.arms import Router

_SURE = 1.96
"""Standard deviations that hold 95 % of a normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A quality in [0, 1] with its 95 % credible interval, and the weight of the rewards that tell of it, faded."""

    estimate: float
    low: float
    high: float
    rewards: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of an arm."""

    arm: Arm
    typical: Quality
    """At the category's typical question, the mean of those that any arm had words on: so arms can be compared."""
    given: Quality
    """At the mean of those that it had words on itself: it may have got the easy ones."""
    doubt: float
    """How much its last rewards speak for a fall; past `Terms.alarm` it is learnt anew."""
    known: bool
    reliability: float
    """How probable it is to answer at all now."""
    cost: float
    """Relative to the large model's, unless the pack's prices tell it of the model that is asked for."""


def outlooks(router: Router, category: str, now_s: float) -> tuple[Outlook, ...]:
    """Return what is known of every arm in a category, in the order of `Arm`."""
    beliefs, terms = router.beliefs(category), router.terms
    everywhere = _mean(sum((belief.seen for belief in beliefs.values()), np.zeros(DIM)))
    return tuple(
        Outlook(
            arm=arm,
            typical=_quality(*belief.expects(everywhere), belief.known_by),
            given=_quality(*belief.expects(_mean(belief.seen)), belief.known_by),
            doubt=belief.doubt,
            known=arm is Arm.LARGE or belief.known_by >= terms.enough,
            reliability=router.reliability(category, arm, now_s),
            cost=terms.costs[arm],
        )
        for arm, belief in beliefs.items()
    )


def together(some: Iterable[Quality]) -> Quality | None:
    """Return the quality of several arms' answers taken together, by the weight of their rewards; None without any.

    Arms are taken as independent.
    """
    told = [one for one in some if one.rewards > 0]
    weight = sum(one.rewards for one in told)
    if not told:
        return None
    estimate = sum(one.estimate * one.rewards for one in told) / weight
    below = sum(((one.estimate - one.low) * one.rewards / weight) ** 2 for one in told) ** 0.5
    above = sum(((one.high - one.estimate) * one.rewards / weight) ** 2 for one in told) ** 0.5
    return Quality(estimate=estimate, low=estimate - below, high=estimate + above, rewards=weight)


def _quality(mean: float, spread: float, rewards: float) -> Quality:
    estimate = min(1.0, max(0.0, mean))
    return Quality(
        estimate=estimate,
        low=min(estimate, max(0.0, mean - _SURE * spread)),
        high=max(estimate, min(1.0, mean + _SURE * spread)),
        rewards=rewards,
    )


def _mean(seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean row of a sum of rows; of none, the middle of all that are possible."""
    if seen[0] <= 0.0:
        return np.array([1.0, *[0.0] * (DIM - 1)])
    row: NDArray[np.float64] = seen / seen[0]
    return row
