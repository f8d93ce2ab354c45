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

from cacheproxy.policy.sweep import Scale, false_hits, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cacheproxy.policy.breakeven import Balance
    from cacheproxy.policy.pack import Category
    from cacheproxy.policy.sweep import At, Label, Seen

FEWEST_LABELS = 3
"""Labelled pairs, or complaints, below which nothing is said: one caller's bad day is no evidence."""
FEWEST_GOOD = 5
"""Good pairs below a level that speak for lowering it: a wrong answer is worse than a miss."""
FEWEST_LOOKUPS = 200
"""Lookups below which a category is not said to lose."""
_SOON = 0.1
"""Complaints of answers younger than this share of their lifetime do not speak of staleness."""
_DIGITS = 1000
_LEAST_PROBABILITY = 0.5
_MOST_PROBABILITY = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one category. `threshold` is the pack's for the encoder named, or None: it has none.

    With `verified` a verifier decides, and the category's `min_probability` is what may change.
    """

    category: str
    rules: Category
    encoder: str
    threshold: float | None
    floor: float | None
    verified: bool = False
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dial:
    """The number that decides what a category serves: its threshold, or its least probability. `now` is in force."""

    scale: Scale
    name: str
    now: float
    lowest: float
    highest: float
    band: float

    @property
    def kind(self) -> str:
        """How recommendations are named after it."""
        return "threshold" if self.scale is Scale.SIMILARITY else "min_probability"


def recommend(evidence: Evidence) -> list[Recommendation]:
    """Return what the evidence speaks for; most often nothing."""
    rules = evidence.rules
    if not rules.allow_caching:
        return []
    found, dial = list(_losing(evidence)), _dial(evidence)
    if rules.semantic and dial is not None and not found:
        found += list(_higher(evidence, dial)) or list(_lower(evidence, dial))
    return [*found, *_shorter(evidence)]


def _dial(evidence: Evidence) -> _Dial | None:
    rules, threshold = evidence.rules, evidence.threshold
    if evidence.verified:
        now = rules.min_probability
        lowest = max(_LEAST_PROBABILITY, now - rules.probability_band)
        return _Dial(
            scale=Scale.PROBABILITY,
            name="least probability",
            now=now,
            lowest=lowest,
            highest=_MOST_PROBABILITY,
            band=rules.probability_band,
        )
    if threshold is None:
        return None
    lowest = max(threshold - rules.near_miss_band, evidence.floor or 0.0)
    return _Dial(
        scale=Scale.SIMILARITY,
        name="threshold",
        now=threshold,
        lowest=lowest,
        highest=1.0,
        band=rules.near_miss_band,
    )


def _higher(evidence: Evidence, dial: _Dial) -> Iterator[Recommendation]:
    delta, served = evidence.rules.delta, false_hits(evidence.labels, dial.now, dial.scale)
    if served.trials < FEWEST_LABELS or served.estimate is None or served.estimate <= delta:
        return
    wrong = sorted({place for good, place in _places(evidence, dial) if not good and place >= dial.now})
    for place in wrong:
        level = (math.floor(place * _DIGITS) + 1) / _DIGITS
        at = false_hits(evidence.labels, level, dial.scale)
        if level <= dial.highest and (at.estimate is None or at.estimate <= delta):
            why = (
                f"{served.events} of {served.trials} labelled similarity hits were wrong, "
                f"and delta is {delta:.1%}: raise the {dial.name} from {dial.now:.3f} to {level:.3f}"
            )
            yield _moved(evidence, dial, f"raise_{dial.kind}", why, level)
            return
    yield Recommendation(
        kind="semantic_off",
        category=evidence.category,
        why=f"{served.events} of {served.trials} labelled similarity hits were wrong, "
        f"and no {dial.name} sets them apart",
        evidence={
            "labelled": served.trials,
            "false": served.events,
            "false_low": served.low,
            "false_high": served.high,
        },
        expected={},
        patch={"categories": {evidence.category: {"semantic": False}}},
    )


def _lower(evidence: Evidence, dial: _Dial) -> Iterator[Recommendation]:
    """Lower the level to where enough near misses were said to be right, and next to none wrong."""
    places = _places(evidence, dial)
    right_ones = sorted({place for good, place in places if good and dial.lowest <= place < dial.now})
    for place in right_ones:
        level = max(dial.lowest, math.floor(place * _DIGITS) / _DIGITS)
        between = [good for good, at in places if level <= at < dial.now]
        right, at = sum(between), false_hits(evidence.labels, level, dial.scale)
        if right < FEWEST_GOOD:
            return
        if right == len(between) and at.estimate is not None and at.estimate <= evidence.rules.delta:
            why = (
                f"{right} labelled near misses were right and none was wrong: "
                f"lower the {dial.name} from {dial.now:.3f} to {level:.3f}"
            )
            yield _moved(evidence, dial, f"lower_{dial.kind}", why, level)
            return


def _places(evidence: Evidence, dial: _Dial) -> list[tuple[bool, float]]:
    """Return whether each label is good, and where it stands; labels that stand nowhere are left out."""
    placed = ((label.good, label.place(dial.scale)) for label in evidence.labels)
    return [(good, place) for good, place in placed if place is not None]


def _moved(evidence: Evidence, dial: _Dial, kind: str, why: str, level: float) -> Recommendation:
    at, then = sweep(evidence.seen, evidence.labels, [dial.now, level], dial.band, dial.scale)
    patch: dict[str, Any] = {"categories": {evidence.category: {"min_probability": level}}}
    if dial.scale is Scale.SIMILARITY:
        patch = {"encoders": {evidence.encoder: {"thresholds": {evidence.category: level}}}}
    return Recommendation(
        kind=kind,
        category=evidence.category,
        why=why,
        evidence={dial.kind: dial.now, **_told(at)},
        expected={dial.kind: level, **_told(then)},
        patch=patch,
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
