"""Learnt: what a similarity head brings along, since thresholds belong to the vectors that they were found on. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheproxy.policy.pack import Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """Thresholds of the similarities of one epoch, that of a head. They never change: another head is another epoch."""

    base: str
    """Epoch of the encoder below it, for which the pack has thresholds."""
    thresholds: Mapping[str, float]
    """By category; `rest` is for those it does not name."""
    rest: float
    verify_from: float = 0.0
    """Cosine from which on a verifier is asked, where the encoder's own is at least what the pack asks for, too."""

    def threshold(self, pack: Pack, category: str) -> float | None:
        """Return the cosine from which on a category's entries are served, where the pack serves them by one.

        A category without one of its own keeps the distance that the pack has put between it and the default one.
        """
        plain = pack.threshold(category, self.base)
        if plain is None:
            return None
        if category in self.thresholds:
            return self.thresholds[category]
        usual = pack.threshold(pack.default_category, self.base)
        harder = 0.0 if usual is None else max(0.0, plain - usual)
        return min(1.0, self.rest + harder)
