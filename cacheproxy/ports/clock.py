"""Time, passed in."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Time, passed in so that decisions can be tested."""

    def now(self) -> float:
        """Wall clock, seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards."""
        ...
