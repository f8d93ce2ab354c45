"""How long an engine that fails is left alone. No I/O and no clock of its own: times are passed in, in seconds."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES = 3
WITHIN_S = 1.0
SHORTEST_S, LONGEST_S = 0.5, 1.0


class Breaker:
    """Closed while all is well; open for 0.5 to 1 s after three failures within a second; then one trial decides."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._failed_at: deque[float] = deque(maxlen=FAILURES)
        self._trial_until = 0.0
        self._open_until: float | None = None
        self.opened = 0

    @property
    def open(self) -> bool:
        """Whether the last word was a failure: open, or with a trial under way."""
        return self._open_until is not None

    def tries(self, now: float, trial_s: float) -> bool:
        """Whether a trial begins now. One that says nothing gives way to another after `trial_s`."""
        if self._open_until is None or now < self._open_until or now < self._trial_until:
            return False
        self._trial_until = now + trial_s
        return True

    def succeeded(self) -> None:
        """Note an answer."""
        if self._open_until is not None or self._failed_at:
            self._open_until = None
            self._trial_until = 0.0
            self._failed_at.clear()

    def failed(self, now: float) -> None:
        """Note a failure that concerns every command."""
        self._failed_at.append(now)
        full = len(self._failed_at) == FAILURES and now - self._failed_at[0] <= WITHIN_S
        if self._open_until is not None or full:
            if self._open_until is None or now >= self._open_until:
                self.opened += 1
                self._open_until = now + SHORTEST_S + (LONGEST_S - SHORTEST_S) * self._chance()
            self._trial_until = 0.0
