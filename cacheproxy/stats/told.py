"""The figures, as they are told: one struct for a category, a backend, a threshold; null where nothing is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.policy.breakeven import balance
from cacheproxy.policy.sweep import Scale
from cacheproxy.stats.offloads import Offloads

if TYPE_CHECKING:
    from cacheproxy.learn.budget import Standing
    from cacheproxy.learn.tally import Sums
    from cacheproxy.policy.bound import Share
    from cacheproxy.policy.pack import Category
    from cacheproxy.policy.sweep import At


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    pass


class FalseHits(_Told, frozen=True):
    """How many similarity hits are wrong, as far as callers and operators said: `rate` is null without labels.

    `low` and `high` are the exact 95 % interval (Clopper and Pearson). Labels are volunteered, and no random sample.
    """

    labelled: int
    false: int
    rate: float | None
    low: float
    high: float


class Worth(_Told, frozen=True):
    """What looking up gains. Times and money of one lookup are averages; null where nothing is known yet."""

    lookups: int
    hits: int
    hit_rate: float | None
    """h."""
    break_even: float | None
    """h*, the hit rate above which it pays; null also where no hit rate would do."""
    net_ms: float | None
    """h (T_m - T_f) - (T_s + c)."""
    net_usd: float | None
    """The same in money: what right hits save, less what false ones cost."""
    pays: bool | None
    lookup_ms: float | None
    """T_s + c."""
    fetch_ms: float | None
    """T_f; below 0 where hits are decided faster than misses, since exact ones need no embedding."""
    backend_ms: float | None
    """T_m."""
    saved_ms: float
    """In all."""
    saved_usd: float
    """In all."""


class Effective(_Told, frozen=True):
    """What a category decides by, for models of one backend, at its load of now."""

    load: float
    threshold: float | None
    """tau_eff."""
    ttl_s: float
    min_probability: float | None = None
    """Where a verifier decides: the least that is served, unless the error budget asks for more."""


class BudgetTold(_Told, frozen=True):
    """A category's error budget: what is known of its hits by comparing them with fresh answers, and what follows."""

    delta: float
    """Share of wrong answers among similarity hits that is tolerated."""
    wrong: FalseHits
    """Of hits drawn at random (shadow samples), by comparing and judging."""
    labels: int
    """What the category learnt from, misses included."""
    sources: dict[str, int]
    """All labels by where they came from: `shadow`, `explored`, `judge`, `feedback`."""
    served_from: float
    """The lowest probability that is served of an entry without labels."""
    tightened: bool
    """Whether that is above the pack's `min_probability`."""


class CategoryStats(_Told, frozen=True):
    """One category since `since_s`: the start, or the last change of its rules or its threshold."""

    category: str
    verdict: str
    """Whether caching it pays, in words."""
    since_s: float
    total: Worth
    exact_hits: int
    semantic_hits: int
    near_misses: int
    near_misses_kept: int
    false_hits: FalseHits
    threshold: float | None
    """Where a verifier decides: only from where on it is asked."""
    min_probability: float | None
    """Null where similarity decides."""
    budget: BudgetTold | None
    """Null where similarity decides."""
    ttl_s: float
    effective: dict[str, Effective]
    """By backend."""
    entries: int
    size_bytes: int
    evictions: dict[str, int]
    """By cause, since the start."""
    models: dict[str, Worth]
    offloads: Offloads | None = None
    """What the small model did; null without one."""


class BackendStats(_Told, frozen=True):
    """One backend. `breaker` is `closed`, or `open` while no attempts are made."""

    name: str
    state: str
    breaker: str
    in_flight: int
    waiting: int
    limit: int
    first_byte_ms: float
    """A moving average."""
    p95_ms: float
    load: float
    shed: int
    ejections: int
    retries: int


class Swept(_Told, frozen=True):
    """What one threshold, or one least probability, would have done with the logged lookups; each by itself."""

    threshold: float | None
    min_probability: float | None
    hits: int
    hit_rate: float | None
    near_misses: int
    false_hits: FalseHits


class StatsBody(_Told, frozen=True):
    """Every category of the policy in force; `now_s` is the proxy's clock.

    `degraded` says why nothing kept is served, or nothing more kept, and what to do; "" when neither is so.
    """

    now_s: float
    policy_version: int
    degraded: str
    categories: list[CategoryStats]


class BackendsBody(_Told, frozen=True):
    """Every backend."""

    upstreams: list[BackendStats]


class SweepBody(_Told, frozen=True):
    """What each threshold, then each least probability would have done, in the order asked.

    `lookups` are those still logged.
    """

    category: str
    threshold: float | None
    """The one in force."""
    min_probability: float | None
    """The one in force; null where similarity decides."""
    lookups: int
    swept: list[Swept]


def worth_of(sums: Sums, wrong: Share, false_hit_cost: float) -> Worth:
    """Weigh the sums of a category, or of a model in it."""
    measured = sums.measured
    weighed, costs = balance(measured, wrong, false_hit_cost), measured.costs
    return Worth(
        lookups=measured.lookups,
        hits=measured.hits,
        hit_rate=weighed.hit_rate,
        break_even=_finite(weighed.break_even),
        net_ms=weighed.net_ms,
        net_usd=weighed.net_usd,
        pays=weighed.pays,
        lookup_ms=costs.overhead_ms if costs else None,
        fetch_ms=costs.fetch_ms if costs else None,
        backend_ms=costs.backend_ms if costs else None,
        saved_ms=sums.saved_ms,
        saved_usd=sums.saved_usd,
    )


def lowest_threshold(category: CategoryStats) -> float | None:
    """Return the threshold in force at the most loaded backend; None where nothing is served by similarity."""
    told = [one.threshold for one in category.effective.values() if one.threshold is not None]
    return min(told, default=category.threshold)


def longest_ttl_s(category: CategoryStats) -> float:
    """Return the lifetime in force at the most loaded backend."""
    return max((one.ttl_s for one in category.effective.values()), default=category.ttl_s)


def verdict_on(worth: Worth, rules: Category) -> str:
    """Say whether caching a category pays."""
    if not rules.allow_caching:
        return "never cached"
    if worth.pays is None or worth.hit_rate is None or worth.net_ms is None:
        return "not known yet"
    needed = "no hit rate would do" if worth.break_even is None else f"{worth.break_even:.1%} are needed"
    how = f"pays: {worth.net_ms:.1f} ms saved" if worth.pays else f"loses: {-worth.net_ms:.1f} ms lost"
    return f"{how} on each lookup; {worth.hit_rate:.1%} hits, {needed}"


def swept_of(at: At, scale: Scale) -> Swept:
    """Tell a level's figures."""
    return Swept(
        threshold=at.level if scale is Scale.SIMILARITY else None,
        min_probability=at.level if scale is Scale.PROBABILITY else None,
        hits=at.hits,
        hit_rate=at.hit_rate,
        near_misses=at.near_misses,
        false_hits=false_hits_of(at.false_hits),
    )


def false_hits_of(wrong: Share) -> FalseHits:
    """Tell a share of labelled hits."""
    return FalseHits(labelled=wrong.trials, false=wrong.events, rate=wrong.estimate, low=wrong.low, high=wrong.high)


def budget_of(standing: Standing, delta: float, least: float) -> BudgetTold:
    """Tell a category's error budget; `least` is the pack's probability."""
    return BudgetTold(
        delta=delta,
        wrong=false_hits_of(standing.share),
        labels=standing.labels,
        sources=standing.sources,
        served_from=standing.least,
        tightened=standing.least > least,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
