"""The reader of all figures: each is read from the part that counts it, when it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from cacheproxy.policy.adapt import effective_probability, effective_threshold, effective_ttl
from cacheproxy.policy.bound import Share, share
from cacheproxy.policy.breakeven import balance
from cacheproxy.policy.plan import plain_epoch, threshold_of
from cacheproxy.policy.recommend import Evidence, Recommendation, recommend
from cacheproxy.policy.sweep import Scale, false_hits, sweep
from cacheproxy.stats.offloads import RoutingBody
from cacheproxy.stats.told import (
    BackendStats,
    CategoryStats,
    Effective,
    Swept,
    budget_of,
    false_hits_of,
    swept_of,
    verdict_on,
    worth_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cacheproxy.learn.budget import Standing
    from cacheproxy.learn.lookups import LookupLog
    from cacheproxy.model import Holding
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.evict import Cause
    from cacheproxy.policy.pack import Category, Pack
    from cacheproxy.stats.routing import Routing
    from cacheproxy.stats.told import BudgetTold


class BackendState(Protocol):
    """What a pool says of one backend (`upstream.backend.State`)."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def state(self) -> str:
        """`ok`, `cooling`, `ejected` or `unreachable`."""
        ...

    @property
    def running(self) -> int:
        """Requests it answers."""
        ...

    @property
    def waiting(self) -> int:
        """Requests in its queue."""
        ...

    @property
    def limit(self) -> int:
        """How many may run at once."""
        ...

    @property
    def first_byte_ms(self) -> float:
        """Moving average."""
        ...

    @property
    def p95_ms(self) -> float:
        """Of the recent ones."""
        ...

    @property
    def shed(self) -> int:
        """Requests refused for want of room."""
        ...

    @property
    def ejections(self) -> int:
        """Times it was taken out."""
        ...

    @property
    def retries(self) -> int:
        """Second attempts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the figures come from, each read when asked."""

    lookups: LookupLog
    policy: Callable[[], Policy]
    epoch: Callable[[], str]
    """The one that is searched: the encoder's, or a head's."""
    backends: Callable[[], Sequence[BackendState]]
    beside: Callable[[], Sequence[BackendState]]
    """Backends that no request is routed to: the small model's."""
    load: Callable[[str], float]
    """Of a backend, by its name."""
    holdings: Callable[[], Sequence[Holding]]
    evictions: Callable[[], Mapping[tuple[str, Cause], int]]
    """By category and cause."""
    standing: Callable[[str, float, float], Standing]
    """Of the error budget of a category that serves from this probability on, within this delta."""
    routing: Routing | None = None
    """What the small model does; None without one."""


class Stats:
    """The figures of one proxy."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def categories(self) -> list[CategoryStats]:
        """Return every category of the policy in force."""
        pack = self._sources.policy().pack
        held: dict[str, tuple[int, int]] = {}
        for one in self._sources.holdings():
            entries, size = held.get(one.category, (0, 0))
            held[one.category] = entries + one.entries, size + one.size_bytes
        return [self._category(name, pack, *held.get(name, (0, 0))) for name in pack.categories]

    def backends(self) -> list[BackendStats]:
        """Return every backend."""
        return [
            BackendStats(
                name=one.name,
                state=one.state,
                breaker="open" if one.state in ("ejected", "unreachable") else "closed",
                in_flight=one.running,
                waiting=one.waiting,
                limit=one.limit,
                first_byte_ms=one.first_byte_ms,
                p95_ms=one.p95_ms,
                load=self._sources.load(one.name),
                shed=one.shed,
                ejections=one.ejections,
                retries=one.retries,
            )
            for one in (*self._sources.backends(), *self._sources.beside())
        ]

    def routing(self) -> RoutingBody | None:
        """Return how every category of the policy in force is routed; None without a small model."""
        sources, policy = self._sources, self._sources.policy()
        if sources.routing is None:
            return None
        load = max((sources.load(one.name) for one in sources.backends()), default=0.0)
        return RoutingBody(
            now_s=sources.routing.clock.now(),
            policy_version=policy.version,
            small_model=sources.routing.model,
            explored=sources.routing.explored,
            categories=[
                sources.routing.category(name, load, allowed=rules.augment == "auto")
                for name, rules in policy.pack.categories.items()
            ],
        )

    def arm_qualities(self) -> dict[tuple[str, str], float]:
        """Return the expected quality of every arm of a category that something was said of."""
        routing = self._sources.routing
        if routing is None:
            return {}
        return {
            (name, arm): quality
            for name in self._sources.policy().pack.categories
            for arm, quality in routing.qualities(name).items()
        }

    def examples(self) -> dict[str, int]:
        """Return how many past answers are known as examples, by category."""
        return {} if self._sources.routing is None else self._sources.routing.state.counts()

    def sweep(
        self, category: str, thresholds: Sequence[float], probabilities: Sequence[float] = ()
    ) -> tuple[int, list[Swept]]:
        """Return how many lookups of a category are logged, and what each level would have done with them."""
        rules = self._sources.policy().pack.categories[category]
        seen, labels = self._sources.lookups.seen(category), self._sources.lookups.labels(category)
        asked = (
            (Scale.SIMILARITY, thresholds, rules.near_miss_band),
            (Scale.PROBABILITY, probabilities, rules.probability_band),
        )
        return len(seen), [
            swept_of(at, scale) for scale, levels, band in asked for at in sweep(seen, labels, levels, band, scale)
        ]

    def in_force(self, category: str) -> tuple[float | None, float | None]:
        """Return a category's threshold, and its least probability where a verifier decides."""
        return self._levels(category, self._sources.policy().pack)

    def wrong_hits(self) -> Share:
        """Return how many hits by similarity were wrong, of all that callers and comparisons told of."""
        found = []
        for name in self._sources.policy().pack.categories:
            threshold, least = self.in_force(name)
            scale, level = (Scale.SIMILARITY, threshold) if least is None else (Scale.PROBABILITY, least)
            if level is not None:
                found.append(false_hits(self._sources.lookups.labels(name), level, scale))
        return share(sum(one.events for one in found), sum(one.trials for one in found))

    def recommendations(self, pack: Pack | None = None) -> list[Recommendation]:
        """Return what the log speaks for, given a pack; without one, the pack in force."""
        pack = pack or self._sources.policy().pack
        return [found for name in pack.categories for found in recommend(self._evidence(name, pack))]

    def _category(self, name: str, pack: Pack, entries: int, size_bytes: int) -> CategoryStats:
        sources, rules = self._sources, pack.categories[name]
        tally, (threshold, least) = sources.lookups.tally(name), self._levels(name, pack)
        effective = self._effective(name, pack)
        scale = Scale.SIMILARITY if least is None else Scale.PROBABILITY
        told = (one.threshold if least is None else one.min_probability for one in effective.values())
        level = min((one for one in told if one is not None), default=threshold if least is None else least)
        wrong = false_hits(sources.lookups.labels(name), math.inf if level is None else level, scale)
        total = worth_of(tally.total, wrong, rules.false_hit_cost)
        return CategoryStats(
            category=name,
            verdict=verdict_on(total, rules),
            since_s=tally.since_s,
            total=total,
            exact_hits=tally.total.exact,
            semantic_hits=tally.total.semantic,
            near_misses=tally.near_misses,
            near_misses_kept=len(sources.lookups.near_misses(name)),
            false_hits=false_hits_of(wrong),
            threshold=threshold if rules.semantic else None,
            min_probability=least if rules.semantic else None,
            budget=None if least is None else self._budget(name, rules, least),
            ttl_s=rules.ttl_s,
            effective=effective,
            entries=entries,
            size_bytes=size_bytes,
            evictions={
                cause.value: count for (category, cause), count in sources.evictions().items() if category == name
            },
            models={model: worth_of(sums, wrong, rules.false_hit_cost) for model, sums in tally.models.items()},
            offloads=None if sources.routing is None else sources.routing.offloads(name),
        )

    def _budget(self, name: str, rules: Category, least: float) -> BudgetTold:
        return budget_of(self._sources.standing(name, least, rules.delta), rules.delta, least)

    def _effective(self, name: str, pack: Pack) -> dict[str, Effective]:
        sources, rules = self._sources, pack.categories[name]
        (threshold, least), floor = self._levels(name, pack), pack.floor(name, sources.epoch())
        found = {}
        for backend in sources.backends():
            load = sources.load(backend.name)
            lowered = eased = None
            if rules.semantic and threshold is not None:
                lowered = effective_threshold(
                    threshold, floor if least is None else None, rules.load_threshold_drop, load
                )
            if rules.semantic and least is not None:
                eased = effective_probability(least, rules.load_threshold_drop, load)
            ttl_s = effective_ttl(rules.ttl_s, rules.load_ttl_stretch, load)
            found[backend.name] = Effective(load=load, threshold=lowered, ttl_s=ttl_s, min_probability=eased)
        return found

    def _levels(self, name: str, pack: Pack) -> tuple[float | None, float | None]:
        """Return what a pack, were it in force, would decide a category by: threshold, and least probability."""
        policy = replace(self._sources.policy(), pack=pack)
        threshold, verified = threshold_of(policy, name, self._sources.epoch())
        return threshold, pack.categories[name].min_probability if verified else None

    def _evidence(self, name: str, pack: Pack) -> Evidence:
        lookups, epoch, rules = self._sources.lookups, self._sources.epoch(), pack.categories[name]
        (threshold, least), tally, labels = self._levels(name, pack), lookups.tally(name), lookups.labels(name)
        scale, level = (Scale.SIMILARITY, threshold) if least is None else (Scale.PROBABILITY, least)
        wrong = false_hits(labels, level if level is not None else math.inf, scale)
        plain = plain_epoch(self._sources.policy(), epoch)
        encoders = (encoder for encoder, table in pack.encoders.items() if table.fingerprint == plain)
        # A head's similarities are not the encoder's: what they speak for must not be written into its table.
        changes = threshold if least is not None or epoch == plain else None
        return Evidence(
            category=name,
            rules=rules,
            encoder=next(encoders, ""),
            threshold=changes,
            floor=pack.floor(name, epoch),
            verified=least is not None,
            seen=lookups.seen(name),
            labels=labels,
            balance=balance(tally.total.measured, wrong, rules.false_hit_cost),
            lookups=tally.total.lookups,
            complaint_ages_s=lookups.complaint_ages_s(name),
        )
