"""A clock that moves only when told to."""

from __future__ import annotations


class FakeClock:
    """Both clocks of `ports.Clock`, at a fixed instant until `advance`."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.now_s = now_s
        self.monotonic_s = 1000.0

    def now(self) -> float:
        """Wall clock, seconds since the epoch."""
        return self.now_s

    def monotonic(self) -> float:
        """Seconds that never go backwards."""
        return self.monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        self.monotonic_s += seconds
