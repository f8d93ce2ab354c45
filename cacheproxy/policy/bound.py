"""Bound: how large a share may be, given what was counted of it. Pure.

Labels are few and errors rare, so the interval is the exact one (Clopper and Pearson, 1934): it holds at any number of
labels, where a normal approximation promises too much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_STEPS = 50  # halvings: far below what doubles can tell apart in a share


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share with its two-sided exact interval. Of nothing there is no share: `estimate` is None, the ends 0 and 1."""

    events: int
    trials: int
    estimate: float | None
    low: float
    high: float


def share(events: int, trials: int, confidence: float = CONFIDENCE) -> Share:
    """Return the share of `events` in `trials` independent trials.

    Raises ValueError unless 0 <= events <= trials and 0 < confidence < 1.
    """
    if not 0 <= events <= trials or not 0 < confidence < 1:
        raise ValueError(f"no share: {events} of {trials} at {confidence}")
    tail = (1 - confidence) / 2
    return Share(
        events=events,
        trials=trials,
        estimate=events / trials if trials else None,
        low=0.0 if events == 0 else _chance(events - 1, trials, 1.0 - tail),
        high=1.0 if events == trials else _chance(events, trials, tail),
    )


def most_within(bound: float, trials: int, confidence: float = CONFIDENCE) -> int:
    """Return how many of `trials` may be events for the exact upper bound of their share to stay within `bound`.

    0 where not even none of them is few enough. One pass over the binomial: no bound is solved for.
    """
    if bound >= 1.0:
        return trials
    if bound <= 0.0:
        return 0
    tail, odds = (1 - confidence) / 2, math.log(bound) - math.log1p(-bound)
    weight, fewer = trials * math.log1p(-bound), 0.0
    for events in range(trials):
        fewer += math.exp(weight)
        if fewer > tail:
            return max(0, events - 1)
        weight += math.log((trials - events) / (events + 1)) + odds
    return trials - 1


def _chance(events: int, trials: int, fewer: float) -> float:
    """Return the p at which `events` or fewer of `trials` (`events` < `trials`) happen with probability `fewer`."""
    if 2 * events >= trials:  # told by what does not happen: that is less to add up
        return 1.0 - _chance(trials - events - 1, trials, 1.0 - fewer)
    counts = np.arange(events + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((trials - counts[:-1]) / counts[1:]))])
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        p = (low + high) / 2
        happen = np.exp(ways + counts * math.log(p) + (trials - counts) * math.log1p(-p))
        low, high = (p, high) if float(happen.sum()) > fewer else (low, p)
    return high
