"""Recent times of one backend, and what 19 in 20 of them stay within."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 30.0
_MOST = 512
_FEWEST = 8
"""Of fewer, one slow answer would speak for all."""


class RecentTimes:
    """Times of the last half minute, at most 512 of them: what is older says nothing of the load of now."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque(maxlen=_MOST)

    def add(self, took_s: float, now: float) -> None:
        """Remember a time."""
        self._times.append((now, took_s))

    def p95_s(self, now: float) -> float:
        """Return the 95th percentile (nearest rank); 0.0 where there are too few to tell."""
        times = self._times
        while times and now - times[0][0] > _WINDOW_S:
            times.popleft()
        if len(times) < _FEWEST:
            return 0.0
        ranked = sorted(took_s for _, took_s in times)
        return ranked[(95 * len(ranked) + 99) // 100 - 1]
