"""Constraint: a tenant's limits on time and money of one answer, and the arm that most probably keeps them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

from cacheproxy.augment.arms import Arm, Choice, Reason
from cacheproxy.augment.observed import LEAST_S, LEAST_USD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheproxy.augment.arms import ArmScore
    from cacheproxy.augment.observed import Estimate

EVEN = 0.5
"""The chance of an arm that was never seen: it is tried only where every known one more probably fails."""
_ALIKE = 0.02
"""Chances that differ by no more are no reason to choose; quality is."""
_POINTS = 64
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What one answer may take. None is no limit.

    `least_quality`: of an arm that is not expected to answer so well, the time does not matter.
    """

    latency_s: float | None = None
    usd: float | None = None
    least_quality: float = 0.5

    def __bool__(self) -> bool:
        return self.latency_s is not None or self.usd is not None


NO_LIMIT = Limit()


def within(limit: Limit, estimate: Estimate | None) -> float:
    """Return how probable an answer is to keep both limits; `EVEN` where nothing is known of the arm."""
    if not limit:
        return 1.0
    if estimate is None:
        return EVEN
    time = _place(limit.latency_s, estimate.log_s, estimate.log_s_spread, LEAST_S)
    money = _place(limit.usd, estimate.log_usd, estimate.log_usd_spread, LEAST_USD)
    return _both(time, money, estimate.correlation)


def constrained(limit: Limit, choice: Choice, estimates: Mapping[Arm, Estimate]) -> Choice:
    """Return the arm most probable to keep the limits, the better one of those that are alike; why not, the choice.

    Arms that are not known well enough, or not good enough, take no part; the large one always does. Nobody's limits
    are a place to explore: what was to be tried is not, what was to be asked beside the line still is.
    """
    if not limit:
        return choice
    able = [
        one
        for one in choice.scores
        if one.arm is Arm.LARGE or (one.known and one.quality * one.reliability >= limit.least_quality)
    ]
    chances = {one.arm: within(limit, estimates.get(one.arm)) * one.reliability for one in able}
    most = max(chances.values())
    best = max((one for one in able if chances[one.arm] >= most - _ALIKE), key=_quality)
    if best.arm is choice.arm:
        return choice
    runner_up = choice.sampled_runner_up if choice.sampled_runner_up is not best.arm else None
    return replace(choice, arm=best.arm, reason=Reason.LIMIT, sampled_runner_up=runner_up)


def _quality(one: ArmScore) -> float:
    return one.quality * one.reliability


def _place(most: float | None, mean: float, spread: float, least: float) -> float:
    """Return a limit in standard deviations from the mean."""
    return math.inf if most is None else (math.log(max(least, most)) - mean) / spread


def _both(one: float, other: float, correlation: float) -> float:
    """Return how probable two normal numbers are to be below these, by the quantiles of the one that is."""
    if math.isinf(one) or math.isinf(other):
        return _NORMAL.cdf(min(one, other))
    share = _NORMAL.cdf(one)
    if share < 1e-6:
        return 0.0
    rest = math.sqrt(1.0 - correlation * correlation)
    quantiles = (_NORMAL.inv_cdf(share * (at + 0.5) / _POINTS) for at in range(_POINTS))
    return share * math.fsum(_NORMAL.cdf((other - correlation * x) / rest) for x in quantiles) / _POINTS
