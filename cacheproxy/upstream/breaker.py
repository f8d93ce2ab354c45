"""Breakers: how long a failing backend is left alone. No I/O and no clock of its own: times are passed in, in seconds.

One class serves both uses. *Ejection* (after Envoy's outlier detection): five failures in a row take a backend out of
the choice for 30 s, longer each time. The *connect breaker*: where trying costs every caller the connect timeout, five
of those in a row stop the trying for a second, doubling to ten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_FORGOTTEN_AFTER_S = 300.0
_MOST_TENANTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a breaker opens, and for how long the n-th time in a row."""

    failures: int
    pause_s: Callable[[int], float]


EJECTION = Rule(failures=5, pause_s=lambda times: min(30.0 * times, 300.0))
CONNECT = Rule(failures=5, pause_s=lambda times: min(2.0 ** min(times - 1, 8), 10.0))


class Breaker:
    """Closed while all is well; open until `back_at`; then half open: one trial decides.

    Every attempt takes a ticket from `begin` and hands it to `end`. Verdicts of attempts that began before the state
    last changed are old news and count for nothing, so a burst of failures opens it once.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._failures = 0
        self._times = 0
        self._epoch = 0
        self._trials = 0
        self._open = False
        self._closed_at = 0.0
        self.back_at = 0.0
        self.opened = 0

    def out(self, now: float) -> bool:
        """Whether this is no time for an attempt: open, or half open with a trial under way."""
        return self._open and (now < self.back_at or self._trials > 0)

    def begin(self) -> int:
        """Take a ticket for one attempt; while open, forced or not, that attempt is a trial."""
        if self._open:
            self._trials += 1
        return self._epoch

    def end(self, ticket: int, succeeded: bool | None, now: float) -> None:
        """Give the verdict on an attempt; None when there is none (its caller left)."""
        if ticket != self._epoch:
            return
        if self._open:
            self._trials -= 1
        if succeeded:
            self._failures = 0
            if self._open:
                self._open, self._closed_at = False, now
                self._turn()
        elif succeeded is False:
            self._failures += 1
            if self._open or self._failures >= self._rule.failures:
                self._trip(now)

    def _trip(self, now: float) -> None:
        if not self._open and now - self._closed_at > _FORGOTTEN_AFTER_S:
            self._times = 0
        self._times += 1
        self._failures = 0
        self._open = True
        self.opened += 1
        self.back_at = now + self._rule.pause_s(self._times)
        self._turn()

    def _turn(self) -> None:
        self._epoch += 1
        self._trials = 0


class CoolDown:
    """Until when a backend asked to be left alone (429), per whoever's key the limit is on; "" is the backend's own."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def start(self, whose: str, until: float) -> None:
        """Leave it alone until then."""
        self._until[whose] = max(until, self._until.pop(whose, 0.0))
        if len(self._until) > _MOST_TENANTS:
            self._until.popitem(last=False)

    def back_at(self, whose: str) -> float:
        """Return when it may be asked again; a time that has passed when it may be now."""
        return self._until.get(whose, 0.0)
