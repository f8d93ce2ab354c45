"""What the small model does, as it is told: a struct for a category's offloads, an arm, a gain; null where unknown."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.augment.observed import LEAST_USD

if TYPE_CHECKING:
    from cacheproxy.augment.gains import Gain
    from cacheproxy.augment.observed import Estimate
    from cacheproxy.augment.outlook import Outlook, Quality

_P95 = NormalDist().inv_cdf(0.95)


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    pass


class QualityTold(_Told, frozen=True):
    """Expected quality, 0 to 1, with its 95 % credible interval; `rewards` is the faded weight of the words on it."""

    estimate: float
    low: float
    high: float
    rewards: float


class Offloads(_Told, frozen=True):
    """Questions of a category that the small model might have had, since the start.

    `quality` is that of the answers which the small model gave, `large_quality` that of the large model's beside them;
    both are null before anything was said of any. Words are survived by a restart, counts are not.
    """

    answers: dict[str, int]
    """By who gave them: `augmented`, `small`, `large`."""
    offloaded: int
    """Those that the small model gave."""
    ratio: float | None
    reasons: dict[str, int]
    """Answers by why that arm was chosen."""
    failures: dict[str, int]
    """Times that the small model gave none, by reason: the large one answered instead, unless words were out."""
    quality: QualityTold | None
    large_quality: QualityTold | None
    regret: float
    """Score given up for exploring and for limits, as expected beforehand; 1 is a whole answer's quality."""
    saved_s: float
    """Against the large model's usual time; an answer that took longer counts as 0."""
    saved_usd: float
    examples: int
    """Past answers that something is known of as examples."""


class ArmTold(_Told, frozen=True):
    """One arm. `quality` is at the category's typical question, so that arms can be compared; nobody is that question.

    `score` is what it adds up to at the load of now: quality * reliability - price.
    """

    arm: str
    known: bool
    """Whether it takes part; else it is tried at a small rate."""
    quality: QualityTold
    given_quality: QualityTold
    """Of the questions that it had words on itself."""
    doubt: float
    """How much its last words speak for a fall; above 6 it is learnt anew."""
    reliability: float
    """How probable it is to answer at all now."""
    cost: float
    """Relative to the large model's."""
    price: float
    score: float
    median_s: float | None
    """Of its next answer, from those of the last minutes."""
    p95_s: float | None
    median_usd: float | None


class GainTold(_Told, frozen=True):
    """What examples gain whose helpfulness is `score` or up to 0.1 more, and the category's own tries (faded)."""

    score: float
    gain: float
    tries_with: float
    tries_without: float


class CategoryRouting(_Told, frozen=True):
    """How a category is routed."""

    category: str
    allowed: bool
    """Whether its policy lets the small model answer (`augment`)."""
    load: float
    """Of the most loaded backend."""
    pressure: float
    """Quality that the large model's whole cost is worth at this load."""
    theta: float
    """Helpfulness above which an example is used; 1 is never."""
    gains: list[GainTold]
    arms: list[ArmTold]
    offloads: Offloads


class RoutingBody(_Told, frozen=True):
    """Every category of the policy in force."""

    now_s: float
    policy_version: int
    small_model: str
    explored: float
    """Share of the questions at which an arm that is not known is tried."""
    categories: list[CategoryRouting]


def quality_of(known: Quality) -> QualityTold:
    """Tell a quality."""
    return QualityTold(estimate=known.estimate, low=known.low, high=known.high, rewards=known.rewards)


def gain_of(known: Gain) -> GainTold:
    """Tell a gain."""
    return GainTold(score=known.score, gain=known.gain, tries_with=known.tries_with, tries_without=known.tries_without)


def arm_of(known: Outlook, estimate: Estimate | None, pressure: float) -> ArmTold:
    """Tell an arm at the pressure of now."""
    price, quality = pressure * known.cost, known.typical
    return ArmTold(
        arm=known.arm.value,
        known=known.known,
        quality=quality_of(quality),
        given_quality=quality_of(known.given),
        doubt=known.doubt,
        reliability=known.reliability,
        cost=known.cost,
        price=price,
        score=quality.estimate * known.reliability - price,
        median_s=None if estimate is None else math.exp(estimate.log_s),
        p95_s=None if estimate is None else math.exp(estimate.log_s + _P95 * estimate.log_s_spread),
        median_usd=None if estimate is None else _usd(estimate.log_usd),
    )


def _usd(log_usd: float) -> float:
    usd = math.exp(log_usd)
    return usd if usd > 2 * LEAST_USD else 0.0
