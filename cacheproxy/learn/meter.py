"""Meter: how many calls, and how much money, learning may still take of a backend, by category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cacheproxy.policy.pack import Category
    from cacheproxy.ports import Clock

_HOUR_S, _DAY_S = 3600.0, 86_400.0


@dataclass(slots=True)
class _Spent:
    calls: float = 0.0
    usd: float = 0.0
    at_s: float = 0.0


class LearningMeter:
    """Buckets that leak evenly: what was spent is given back over an hour, money over a day. In memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spent: dict[str, _Spent] = {}

    def take(self, category: str, rules: Category) -> bool:
        """Take one call, or return False where there is none left or the money is spent."""
        spent = self._of(category, rules)
        if spent.calls + 1 > rules.learning_calls_per_hour or spent.usd >= rules.learning_usd_per_day:
            return False
        spent.calls += 1
        return True

    def charge(self, category: str, rules: Category, usd: float) -> None:
        """Count what a call cost, once that is known."""
        self._of(category, rules).usd += usd

    def _of(self, category: str, rules: Category) -> _Spent:
        now_s = self._clock.monotonic()
        spent = self._spent.setdefault(category, _Spent(at_s=now_s))
        passed_s, spent.at_s = now_s - spent.at_s, now_s
        spent.calls = max(0.0, spent.calls - rules.learning_calls_per_hour * passed_s / _HOUR_S)
        spent.usd = max(0.0, spent.usd - rules.learning_usd_per_day * passed_s / _DAY_S)
        return spent
