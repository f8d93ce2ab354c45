"""The watch: whether hits are wrong more often since another similarity head serves. Pure.

Callers' words and comparisons on served hits are few: the shares' exact intervals must part before it says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cacheproxy.policy.bound import Share

LEAST = 30
"""Labelled hits since the change below which nothing is said."""
TOLERATED = 0.5
"""What is worse than nothing known: a share of wrong hits that speaks for itself."""


class Watch:
    """Compares the share of wrong hits, of all that callers and comparisons told of, with that before a change."""

    def __init__(self) -> None:
        self._before: Share | None = None

    @property
    def watching(self) -> bool:
        """Whether there is anything to go back for."""
        return self._before is not None

    def start(self, before: Share) -> None:
        """Watch from now on, against what was known until now."""
        self._before = before

    def stop(self) -> None:
        """Compare no more."""
        self._before = None

    def worse(self, now: Share) -> str:
        """Return what speaks for going back, "" where nothing does: wrong hits beyond what chance explains."""
        then = self._before
        if then is None or now.trials < LEAST:
            return ""
        bar = then.high if then.trials >= LEAST else TOLERATED
        if now.low <= bar:
            return ""
        return f"{now.events} of {now.trials} labelled hits were wrong, before it {then.events} of {then.trials}"
