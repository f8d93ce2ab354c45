"""Time for decisions: the machine's wall clock, except that within a process it never runs backwards.

A wall clock set back would bring entries back that had expired, and make answers younger than they are. So time goes on
with the monotonic clock, plus the largest lead that the wall clock ever had over it: a clock set forward is followed at
once (entries end early: a miss), one set back is not (until a restart, `now` is ahead of the wall by that much).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class SystemClock:
    """The machine's clocks, read from any thread."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._lead_s = float("-inf")

    def now(self) -> float:
        """Seconds since the epoch, never less than before."""
        # The wall first: a pause between the two readings must not make it look ahead.
        wall_s, monotonic_s = self._wall(), self._monotonic()
        self._lead_s = max(self._lead_s, wall_s - monotonic_s)
        return monotonic_s + self._lead_s

    def monotonic(self) -> float:
        """Seconds that never go backwards."""
        return self._monotonic()
