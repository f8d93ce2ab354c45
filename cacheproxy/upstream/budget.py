"""The retry budget: what keeps a failing backend from being asked twice by everybody at once."""

from __future__ import annotations

_RETRY = 100
"""The unit is a hundredth of a retry, so that no rounding gives one away."""
_MOST = 10 * _RETRY


class RetryBudget:
    """Every request earns `percent` hundredths of a retry, at most ten are saved up, and it starts empty.

    So retries never exceed that share of the requests so far (SRE book, "Handling Overload").
    """

    def __init__(self, percent: int = 10) -> None:
        self._percent = percent
        self._saved = 0

    def earn(self) -> None:
        """Count one request."""
        self._saved = min(self._saved + self._percent, _MOST)

    def has(self) -> bool:
        """Whether there is a retry to spend."""
        return self._saved >= _RETRY

    def spend(self) -> bool:
        """Take one retry; False when there is none left."""
        if not self.has():
            return False
        self._saved -= _RETRY
        return True
