"""Tally: what the lookups of one category added up to, in all and by model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cacheproxy.model import Tier
from cacheproxy.policy.breakeven import Measured

if TYPE_CHECKING:
    from cacheproxy.model import Looked

_MOST_MODELS = 50
OTHERS = "(others)"
"""Stands for the models beyond the first fifty of a category: callers name models as they like."""


@dataclass(slots=True, kw_only=True)
class Sums:
    """Sums since `since_s`."""

    lookups: int = 0
    exact: int = 0
    semantic: int = 0
    hit_ms: float = 0.0
    miss_ms: float = 0.0
    fills: int = 0
    fill_ms: float = 0.0
    saved_ms: float = 0.0
    """What hits spared of the backend's time, their own taken off."""
    saved_usd: float = 0.0

    def note(self, looked: Looked) -> None:
        """Add one decision."""
        self.lookups += 1
        if looked.outcome != "hit":
            self.miss_ms += looked.lookup_ms
            return
        if looked.tier == Tier.EXACT:
            self.exact += 1
        else:
            self.semantic += 1
        self.hit_ms += looked.lookup_ms
        self.saved_usd += looked.saved_usd
        if looked.fill_ms > 0:
            self.filled(looked.fill_ms)
            self.saved_ms += looked.fill_ms - looked.lookup_ms

    def filled(self, fill_ms: float) -> None:
        """Add what one answer took the backend, now or, for a hit, back then."""
        self.fills += 1
        self.fill_ms += fill_ms

    @property
    def measured(self) -> Measured:
        """The same as the break-even takes it."""
        return Measured(
            lookups=self.lookups,
            hits=self.exact + self.semantic,
            hit_ms=self.hit_ms,
            miss_ms=self.miss_ms,
            fills=self.fills,
            fill_ms=self.fill_ms,
            saved_usd=self.saved_usd,
        )


@dataclass(slots=True, kw_only=True)
class Tally:
    """One category, since its rules were last changed or the proxy started."""

    since_s: float
    total: Sums = field(default_factory=Sums)
    models: dict[str, Sums] = field(default_factory=dict)
    near_misses: int = 0

    def of(self, model: str) -> Sums:
        """Return the sums of one model."""
        found = self.models.get(model)
        if found is None:
            name = model if len(self.models) < _MOST_MODELS and len(model) <= 128 else OTHERS
            found = self.models.setdefault(name, Sums())
        return found
