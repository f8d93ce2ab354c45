"""Break-even: whether looking up pays, in time and in money. Pure.

A lookup costs every request its embedding (c) and its search (T_s); a hit costs its document (T_f), too, and saves the
backend's answer (T_m). It pays if and only if the hit rate h exceeds h* = (T_s + c) / (T_m - T_f), and then it saves
h (T_m - T_f) - (T_s + c) of each request: arXiv 2510.26835, whose published ranges the tests reproduce.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cacheproxy.policy.bound import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one request takes, in milliseconds. `fetch_ms` is below 0 where hits are decided faster than misses."""

    overhead_ms: float
    """Embedding and search (c + T_s): what a lookup takes that finds nothing."""
    fetch_ms: float
    """What a hit takes beyond that (T_f)."""
    backend_ms: float
    """What the backend takes to answer (T_m)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What a cache gains. Everything is of one lookup, on average; None where it cannot be known yet."""

    hit_rate: float | None
    break_even: float | None
    """The hit rate h* above which it pays in time; infinite where a hit is no faster than the backend."""
    net_ms: float | None
    net_usd: float | None
    pays: bool | None


def break_even(costs: Costs) -> float:
    """Return h*; infinite where no hit rate would do."""
    saved_ms = costs.backend_ms - costs.fetch_ms
    return costs.overhead_ms / saved_ms if saved_ms > 0 else math.inf


def net_ms(hit_rate: float, costs: Costs) -> float:
    """Return how much sooner an answer comes, on average; below 0 the cache makes answers later."""
    return hit_rate * (costs.backend_ms - costs.fetch_ms) - costs.overhead_ms


def net_usd(hit_rate: float, price_usd: float, false_hits: Share | None, false_hit_cost: float) -> float:
    """Return what a lookup saves of the backend's price, on average.

    A right hit saves the price of its answer; a false one saves nothing and costs `false_hit_cost` such prices. Without
    labels no hit counts as false.
    """
    wrong = false_hits.estimate if false_hits is not None and false_hits.estimate is not None else 0.0
    return hit_rate * price_usd * ((1 - wrong) - wrong * false_hit_cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Sums over the lookups of one category, or of one model in it."""

    lookups: int = 0
    hits: int = 0
    hit_ms: float = 0.0
    """Time to decide, over all hits."""
    miss_ms: float = 0.0
    """The same over all misses."""
    fills: int = 0
    fill_ms: float = 0.0
    """Backend time over all answers known."""
    saved_usd: float = 0.0
    """Price of the answers that hits replaced."""

    @property
    def costs(self) -> Costs | None:
        """The means; None before anything is known of the backend or of lookups."""
        misses = self.lookups - self.hits
        if not self.fills or not self.lookups:
            return None
        hit_ms = self.hit_ms / self.hits if self.hits else None
        overhead_ms = self.miss_ms / misses if misses else hit_ms or 0.0
        return Costs(
            overhead_ms=overhead_ms,
            fetch_ms=hit_ms - overhead_ms if hit_ms is not None else 0.0,
            backend_ms=self.fill_ms / self.fills,
        )


def balance(measured: Measured, false_hits: Share | None, false_hit_cost: float) -> Balance:
    """Weigh what was measured."""
    if not measured.lookups:
        return Balance(hit_rate=None, break_even=None, net_ms=None, net_usd=None, pays=None)
    hit_rate, costs = measured.hits / measured.lookups, measured.costs
    price_usd = measured.saved_usd / measured.hits if measured.hits else 0.0
    gain_ms = net_ms(hit_rate, costs) if costs else None
    return Balance(
        hit_rate=hit_rate,
        break_even=break_even(costs) if costs else None,
        net_ms=gain_ms,
        net_usd=net_usd(hit_rate, price_usd, false_hits, false_hit_cost),
        pays=None if gain_ms is None else gain_ms > 0,
    )
