"""Recommend: which change of a category its own log speaks for, with the evidence and what to expect. Pure.

Nothing is changed here: a recommendation is a patch of the pack (JSON merge patch, RFC 7396) that operators may apply.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.policy.sweep import false_hits, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cacheproxy.policy.breakeven import Balance
    from cacheproxy.policy.pack import Category
    from cacheproxy.policy.sweep import At, Label, Seen

FEWEST_LABELS = 3
"""Labelled pairs, or complaints, below which nothing is said: one caller's bad day is no evidence."""
FEWEST_GOOD = 5
"""Good pairs below a threshold that speak for lowering it: a wrong answer is worse than a miss."""
FEWEST_LOOKUPS = 200
"""Lookups below which a category is not said to lose."""
_SOON = 0.1
"""Complaints of answers younger than this share of their lifetime do not speak of staleness."""
_DIGITS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one category. `threshold` is the pack's for the encoder named, or None: it has none."""

    category: str
    rules: Category
    encoder: str
    threshold: float | None
    floor: float | None
    seen: Sequence[Seen]
    labels: Sequence[Label]
    balance: Balance
    lookups: int
    complaint_ages_s: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One change. The same change has the same id for as long as it is recommended."""

    kind: str
    category: str
    why: str
    evidence: Mapping[str, float | None]
    expected: Mapping[str, float | None]
    patch: Mapping[str, Any] = field(hash=False)

    @property
    def id(self) -> str:
        """Names the change itself: whoever applies it gets what was shown."""
        told = msgspec.json.encode([self.kind, self.category, self.patch], order="deterministic")
        return blake2b(told, digest_size=8).hexdigest()


def recommend(evidence: Evidence) -> list[Recommendation]:
    """Return what the evidence speaks for; most often nothing."""
    rules = evidence.rules
    if not rules.allow_caching:
        return []
    found = list(_losing(evidence))
    if rules.semantic and evidence.threshold is not None and not found:
        found += list(_higher(evidence, evidence.threshold)) or list(_lower(evidence, evidence.threshold))
    return [*found, *_shorter(evidence)]


def _higher(evidence: Evidence, now: float) -> Iterator[Recommendation]:
    budget, served = evidence.rules.false_hit_budget, false_hits(evidence.labels, now)
    if served.trials < FEWEST_LABELS or served.estimate is None or served.estimate <= budget:
        return
    wrong = sorted({label.similarity for label in evidence.labels if not label.good and label.similarity >= now})
    for similarity in wrong:
        threshold = (math.floor(similarity * _DIGITS) + 1) / _DIGITS
        at = false_hits(evidence.labels, threshold)
        if threshold <= 1.0 and (at.estimate is None or at.estimate <= budget):
            why = (
                f"{served.events} of {served.trials} labelled similarity hits were wrong, "
                f"and the budget is {budget:.1%}: raise the threshold from {now:.3f} to {threshold:.3f}"
            )
            yield _moved(evidence, "raise_threshold", why, now, threshold)
            return
    yield Recommendation(
        kind="semantic_off",
        category=evidence.category,
        why=f"{served.events} of {served.trials} labelled similarity hits were wrong, and no threshold sets them apart",
        evidence={
            "labelled": served.trials,
            "false": served.events,
            "false_low": served.low,
            "false_high": served.high,
        },
        expected={},
        patch={"categories": {evidence.category: {"semantic": False}}},
    )


def _lower(evidence: Evidence, now: float) -> Iterator[Recommendation]:
    """Lower the threshold to where enough near misses were said to be right, and next to none wrong."""
    lowest = max(now - evidence.rules.near_miss_band, evidence.floor or 0.0)
    good = sorted({one.similarity for one in evidence.labels if one.good and lowest <= one.similarity < now})
    for similarity in good:
        threshold = max(lowest, math.floor(similarity * _DIGITS) / _DIGITS)
        between = [one for one in evidence.labels if threshold <= one.similarity < now]
        right = sum(one.good for one in between)
        at = false_hits(evidence.labels, threshold)
        if right < FEWEST_GOOD:
            return
        if right == len(between) and at.estimate is not None and at.estimate <= evidence.rules.false_hit_budget:
            why = (
                f"{right} labelled near misses were right and none was wrong: "
                f"lower the threshold from {now:.3f} to {threshold:.3f}"
            )
            yield _moved(evidence, "lower_threshold", why, now, threshold)
            return


def _moved(evidence: Evidence, kind: str, why: str, now: float, threshold: float) -> Recommendation:
    at, then = sweep(evidence.seen, evidence.labels, [now, threshold], evidence.rules.near_miss_band)
    return Recommendation(
        kind=kind,
        category=evidence.category,
        why=why,
        evidence={"threshold": now, **_told(at)},
        expected={"threshold": threshold, **_told(then)},
        patch={"encoders": {evidence.encoder: {"thresholds": {evidence.category: threshold}}}},
    )


def _told(at: At) -> dict[str, float | None]:
    wrong = at.false_hits
    return {
        "lookups": at.lookups,
        "hit_rate": at.hit_rate,
        "near_misses": at.near_misses,
        "labelled": wrong.trials,
        "false": wrong.events,
        "false_hit_rate": wrong.estimate,
        "false_low": wrong.low,
        "false_high": wrong.high,
    }


def _losing(evidence: Evidence) -> Iterator[Recommendation]:
    balance, rules = evidence.balance, evidence.rules
    if balance.pays is not False or balance.net_ms is None or evidence.lookups < FEWEST_LOOKUPS:
        return
    key = "semantic" if rules.semantic else "allow_caching"
    what = "serve exact matches only" if rules.semantic else "do not cache it"
    yield Recommendation(
        kind="semantic_off" if rules.semantic else "caching_off",
        category=evidence.category,
        why=f"lookups take longer than hits spare: each costs {-balance.net_ms:.2f} ms on average; {what}",
        evidence={
            "lookups": evidence.lookups,
            "hit_rate": balance.hit_rate,
            "break_even": balance.break_even,
            "net_ms": balance.net_ms,
            "net_usd": balance.net_usd,
        },
        expected={},
        patch={"categories": {evidence.category: {key: False}}},
    )


def _shorter(evidence: Evidence) -> Iterator[Recommendation]:
    ttl_s = evidence.rules.ttl_s
    ages = [age for age in evidence.complaint_ages_s if age >= _SOON * ttl_s]
    if len(ages) < FEWEST_LABELS:
        return
    shorter_s = float(max(1, math.floor(min(statistics.quantiles(ages, n=4)[0], ttl_s / 2))))
    yield Recommendation(
        kind="shorten_ttl",
        category=evidence.category,
        why=f"{len(ages)} answers to their own question were called wrong when they were old: let them live shorter",
        evidence={"ttl_s": ttl_s, "complaints": len(ages), "median_age_s": statistics.median(ages)},
        expected={"ttl_s": shorter_s, "complaints": sum(age < shorter_s for age in ages)},
        patch={"categories": {evidence.category: {"ttl_s": shorter_s}}},
    )
