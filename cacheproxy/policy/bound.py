"""Bound: how large a share may be, given what was counted of it. Pure.

Labels are few and errors rare, so the interval is the exact one (Clopper and Pearson, 1934): it holds at any number of
labels, where a normal approximation promises too much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
        low=0.0 if events == 0 else 1.0 - _upper(trials - events, trials, tail),
        high=1.0 if events == trials else _upper(events, trials, tail),
    )


def _upper(events: int, trials: int, tail: float) -> float:
    """Return the p at which `events` or fewer of `trials` still happen with probability `tail`."""
    weights = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(events + 1)]
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        p = (low + high) / 2
        with_log, without_log = math.log(p), math.log1p(-p)
        fewer = math.fsum(
            math.exp(weight + k * with_log + (trials - k) * without_log) for k, weight in enumerate(weights)
        )
        low, high = (p, high) if fewer > tail else (low, p)
    return high
