"""Arms: which model answers a question that no kept answer may, learnt by category and load. Pure.

A contextual bandit (IC-Cache, section 4.2; why LinUCB: docs/decisions/0039-routing.md). For each arm i

    S_i = quality_i * reliability_i - (thrift + lambda_0 * tanh(gamma * max(0, L - L_0))) * C_i

with C_i its cost relative to the large model's and L the load of the large model's backends. What is compared is a
little better than what is expected, by how little is known (LinUCB: Li et al., 2010). An arm that is not known well
enough does not take part: the large model answers, and the others are tried at a small fixed rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from statistics import NormalDist
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cacheproxy.augment.belief import RELIABLE, Belief, Prior, Runs, Sums
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 2
"""Of what is written down: another one is refused."""


class Arm(StrEnum):
    """Who answers."""

    AUGMENTED = "augmented"
    """The small model, with examples."""
    SMALL = "small"
    LARGE = "large"


class Reason(StrEnum):
    """Why this arm."""

    COLD = "cold"
    """The small arms are not known well enough."""
    EXPLORED = "explored"
    """One that is not known well enough, to learn of it."""
    BEST = "best"
    """Nobody is expected to score higher."""
    OPTIMISM = "optimism"
    """Another one is expected to score higher, but less is known of this one."""
    LOAD = "load"
    """Without the load another one would have been chosen."""
    LIMIT = "limit"
    """Most probable to finish within what the tenant allows (augment/constraint.py)."""


Index = Callable[[float, float, Random], float]
"""From mean and standard deviation of the quality that is believed in to the one that is compared."""


def optimistic(width: float) -> Index:
    """LinUCB (Li et al., 2010): so many standard deviations above the mean."""
    return lambda mean, spread, _: mean + width * spread


LINUCB = optimistic(0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known before a question is answered. `load` is an average, 1 where the large model is at its limit."""

    max_similarity: float
    mean_helpfulness: float
    examples: int
    question_tokens: int
    agreement: float = 0.0
    """Of the examples' answers with one another, in [0, 1]; says nothing of fewer than two."""
    small_cost: float | None = None
    """What the small model's tokens cost, relative to the large one's; None where prices do not say."""
    load: float = 0.0
    double_run: bool = False
    """Whether the runner-up may be asked, too, beside the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """By what the arms are weighed. Costs are relative to the large model's."""

    costs: Mapping[Arm, float] = field(default_factory=lambda: {Arm.AUGMENTED: 0.15, Arm.SMALL: 0.1, Arm.LARGE: 1.0})
    priors: Mapping[Arm, Prior] = field(
        default_factory=lambda: {
            Arm.AUGMENTED: Prior(mean=0.5, spread=0.3),
            Arm.SMALL: Prior(mean=0.4, spread=0.3),
            Arm.LARGE: Prior(mean=0.9, spread=0.1),
        }
    )
    thrift: float = 0.02
    """Quality that the large model's whole cost is worth without load."""
    lambda_0: float = 0.2
    """Quality that it is worth, besides, under the heaviest load."""
    gamma: float = 4.0
    load_from: float = 0.7
    """L_0: up to this load only quality and thrift count."""
    enough: float = 20.0
    """Weight of the rewards from which on an arm is known."""
    explore: float = 0.02
    """Share of the questions at which an arm is tried that is not known."""
    uniform_below: float = 0.1
    """Standard deviation of the arms' chances to be the best one, below which the runner-up is asked for, too."""
    memory: float = 1000.0
    """Rewards of a category after which one has faded to 1/e."""
    alarm: float = 6.0
    """Doubt in what was learnt of an arm (`Belief.surprise`) above which it is not known any more."""
    index: Index = LINUCB
    """How an arm's belief becomes what is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmScore:
    """What spoke for an arm. `score` is S_i with the expected quality, `index` with the one that is compared."""

    arm: Arm
    quality: float
    spread: float
    reliability: float
    price: float
    """What is taken off for its cost, of thrift and load together."""
    score: float
    index: float
    rewards: float
    """Weight of those it is known by."""
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An arm, and why. `scores` are of the arms that could be had, in the order of `Arm`."""

    arm: Arm
    scores: tuple[ArmScore, ...]
    reason: Reason
    chances: Mapping[Arm, float] = field(default_factory=dict)
    """To score best, of the arms that are known where there are several; they add up to 1."""
    sampled_runner_up: Arm | None = None
    """To be asked beside the line, to learn from; the caller gets the answer of `arm`."""
    judge: bool = False
    """Whether a word on this answer is worth asking for."""

    @property
    def regret(self) -> float:
        """How much less this arm is expected to score than the best one that is known, by what is believed; never < 0.

        What exploring, optimism and limits cost, as far as can be told beforehand.
        """
        own = next(one.score for one in self.scores if one.arm is self.arm)
        return max(0.0, max(one.score for one in self.scores if one.known) - own)


_WELL = 2.0
"""Standard deviations above its mean that an arm's quality may well be; where even that is too little, it is tried
much more seldom."""
_HEARD = 5.0
"""Weight of rewards below which no arm is thought to be too bad to be tried: one bad word is no verdict."""
_UP = 0.9
"""Reliability from which on an arm counts as up; even one that was never asked is not thought to answer always."""
_SELDOM = 0.1
"""Of the share of questions at which others are tried, an arm gets that seems too bad: it may have become better."""


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    categories: dict[str, dict[Arm, Sums]]


class Router:
    """Chooses arms and learns from rewards, each category by itself. Not for several threads at once.

    Everything it knows is numbers of categories; nothing in it is of a caller or a question.
    """

    def __init__(self, terms: Terms | None = None) -> None:
        self.terms = terms or Terms()
        self._pages: dict[str, dict[Arm, Belief]] = {}
        self._runs: dict[tuple[str, Arm], Runs] = {}

    def choose(self, category: str, situation: Situation, random: Random, now_s: float) -> Choice:
        """Return who answers. Without an example the augmented arm cannot be had.

        With equal draws of `random`, and all else equal, a higher load never chooses an arm of a higher cost.
        """
        coin, which = random.random(), random.random()
        scores = self.scores(category, situation, random, now_s)
        known = [one for one in scores if one.known]
        likely = max(one.quality for one in known)
        unknown = [one.arm for one in scores if not one.known and coin < self.terms.explore * _hope(one, likely)]
        if unknown:
            tried = unknown[int(which * len(unknown))]
            if situation.double_run:
                return Choice(arm=Arm.LARGE, scores=scores, reason=Reason.COLD, sampled_runner_up=tried, judge=True)
            return Choice(arm=tried, scores=scores, reason=Reason.EXPLORED, judge=True)
        if len(known) == 1:
            return Choice(arm=Arm.LARGE, scores=scores, reason=Reason.COLD)
        best, chances = max(known, key=lambda one: one.index), chances_of(known)
        choice = Choice(arm=best.arm, scores=scores, reason=self._why(best, known, situation), chances=chances)
        if _deviation(chances.values()) >= self.terms.uniform_below:
            return choice
        runner_up = max((arm for arm in chances if arm != best.arm), key=chances.__getitem__)
        return replace(choice, sampled_runner_up=runner_up if situation.double_run else None, judge=True)

    def scores(self, category: str, situation: Situation, random: Random, now_s: float) -> tuple[ArmScore, ...]:
        """Return what speaks for each arm that can be had; nothing is learnt."""
        row, pressure = features(situation), self.pressure(situation.load)
        found: list[ArmScore] = []
        for arm in Arm:
            belief = self._belief(category, arm)
            mean, spread = belief.expects(row)
            compared = self.terms.index(mean, spread, random)
            if arm is Arm.AUGMENTED and situation.examples <= 0:
                continue
            reliability = self.reliability(category, arm, now_s)
            price = pressure * self.cost(arm, situation)
            found.append(
                ArmScore(
                    arm=arm,
                    quality=min(1.0, max(0.0, mean)),
                    spread=spread,
                    reliability=reliability,
                    price=price,
                    score=mean * reliability - price,
                    index=compared * reliability - price,
                    rewards=belief.known_by,
                    known=arm is Arm.LARGE or belief.known_by >= self.terms.enough,
                )
            )
        return tuple(found)

    def beliefs(self, category: str) -> dict[Arm, Belief]:
        """Return what is believed of each arm in a category; nothing is remembered of having asked."""
        page = self._pages.get(category, {})
        return {arm: page.get(arm) or Belief(self.terms.priors[arm]) for arm in Arm}

    def reliability(self, category: str, arm: Arm, now_s: float) -> float:
        """Return how probable an arm is to answer at all now."""
        runs = self._runs.get((category, arm))
        return RELIABLE if runs is None else runs.share(now_s)

    def cost(self, arm: Arm, situation: Situation) -> float:
        """Return what an answer of an arm costs, relative to the large model's: by prices where they are known."""
        usual, told = self.terms.costs, situation.small_cost
        if arm is Arm.LARGE or told is None or not math.isfinite(told):
            return usual[arm]
        return min(usual[Arm.LARGE], max(0.0, told) * usual[arm] / usual[Arm.SMALL])

    def pressure(self, load: float) -> float:
        """Return the quality that the large model's whole cost is worth at this load. Never falls with it.

        A load that is no number counts as none.
        """
        terms = self.terms
        over = max(0.0, load - terms.load_from) if not math.isnan(load) else 0.0
        return terms.thrift + terms.lambda_0 * math.tanh(terms.gamma * over)

    def reward(self, category: str, arm: Arm, situation: Situation, value: float, weight: float = 1.0) -> None:
        """Learn how good an answer was, in [0, 1]. What is known of the category's other arms fades as well."""
        if not (math.isfinite(value) and math.isfinite(weight) and weight > 0):
            return
        row, belief, terms = features(situation), self._belief(category, arm), self.terms
        if belief.known_by >= terms.enough and belief.surprise(row, value, weight) > terms.alarm:
            if belief.weight > 0:
                belief.fade(min(1.0, 0.5 * terms.enough / belief.weight))
            belief.doubt_others()
            belief.doubt = 0.0
        elif not belief.trusts and belief.weight >= _ALONE * terms.enough:
            belief.trust_others()
        kept = math.exp(-weight / terms.memory)
        for other in Arm:
            self._belief(category, other).fade(kept)
        belief.learn(row, value, weight)

    def ran(self, category: str, arm: Arm, now_s: float, *, ok: bool) -> None:
        """Learn whether an arm answered at all: late, failed and empty is reward 0.

        It counts by itself and is soon forgotten, so that an outage of minutes leaves what is known of quality alone.
        """
        self._runs.setdefault((category, arm), Runs(at_s=now_s)).take(now_s, ok=ok)

    def hear(self, others: Sequence[Router]) -> None:
        """Go by what the routers of other replicas learnt, too, in place of what was heard of them before."""
        for category in {name for router in (self, *others) for name in router._pages}:
            for arm in Arm:
                told = [page[arm] for router in others if arm in (page := router._pages.get(category, {}))]
                if told or arm in self._pages.get(category, {}):
                    self._belief(category, arm).hear(told)

    def to_bytes(self) -> bytes:
        """Return what was learnt. Outages are left out: they are over, or will be noticed."""
        pages = {
            name: {arm: belief.sums() for arm, belief in page.items() if belief.weight > 0}
            for name, page in self._pages.items()
            if any(belief.weight > 0 for belief in page.values())
        }
        return msgspec.msgpack.encode(_Written(version=VERSION, categories=pages))

    @classmethod
    def from_bytes(cls, raw: bytes, terms: Terms | None = None) -> Router:
        """Return a router that knows what was written. Raises ConfigError for another version, and for damage."""
        try:
            written = msgspec.msgpack.decode(raw, type=_Written)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise ConfigError("what was learnt of the arms cannot be read; it starts afresh") from exc
        if written.version != VERSION:
            raise ConfigError(f"what was learnt of the arms is of version {written.version}, not {VERSION}")
        router = cls(terms)
        for category, page in written.categories.items():
            router._pages[category] = {
                arm: Belief.of(page[arm], router.terms.priors[arm]) for arm in Arm if arm in page
            }
        return router

    def _belief(self, category: str, arm: Arm) -> Belief:
        page = self._pages.setdefault(category, {})
        if arm not in page:
            page[arm] = Belief(self.terms.priors[arm])
        return page[arm]

    def _why(self, best: ArmScore, known: list[ArmScore], asked: Situation) -> Reason:
        thrift = self.terms.thrift
        unloaded = max(known, key=lambda one: one.index + one.price - thrift * self.cost(one.arm, asked))
        if unloaded.arm != best.arm:
            return Reason.LOAD
        return Reason.BEST if best.score >= max(one.score for one in known) else Reason.OPTIMISM


_ALONE = 5.0
"""How many times what makes an arm known is learnt here after a surprise before other replicas' word counts again."""


def features(situation: Situation) -> NDArray[np.float64]:
    """Return the row that beliefs are about: 1, then each number from about -1 to 1, 0 where it says nothing."""
    helped = situation.examples > 0
    return np.array(
        [
            1.0,
            _scaled(situation.max_similarity, 0.75, 0.25) if helped else 0.0,
            _scaled(situation.mean_helpfulness, 0.5, 0.5) if helped else 0.0,
            _scaled(situation.examples, 3.0, 3.0) if helped else 0.0,
            _scaled(math.log1p(max(0, situation.question_tokens)), math.log(64.0), 3.0),
            _scaled(situation.agreement, 0.5, 0.5) if situation.examples > 1 else 0.0,
        ]
    )


def _hope(one: ArmScore, likely: float) -> float:
    """Return how often an arm is worth trying, of those that are not known; `likely` is the best one's quality."""
    if one.reliability < min(likely, _UP):
        return 0.0
    able = one.reliability * (one.quality + _WELL * one.spread)
    return 1.0 if able >= likely or one.rewards < _HEARD else _SELDOM


def _deviation(chances: Collection[float]) -> float:
    """Return the standard deviation of chances, which add up to 1."""
    even = 1.0 / len(chances)
    return math.sqrt(sum((chance - even) ** 2 for chance in chances) * even)


def _scaled(value: float, middle: float, half: float) -> float:
    scaled = (value - middle) / half
    return min(1.5, max(-1.5, scaled)) if math.isfinite(scaled) else 0.0


_QUANTILES = np.array([NormalDist().inv_cdf((at + 0.5) / 32) for at in range(32)])


def chances_of(scores: Sequence[ArmScore]) -> dict[Arm, float]:
    """Return how probable each of some arms is to score best, as far as is known.

    Each is followed through its quantiles; the normal distribution by tanh (Page, 1977) is right to 0.0004.
    """
    means = np.array([one.score for one in scores])
    spreads = np.array([max(one.spread * one.reliability, 1e-9) for one in scores])
    points = means[:, None] + spreads[:, None] * _QUANTILES
    z = (points[:, :, None] - means) / spreads
    below = 0.5 + 0.5 * np.tanh(z * (0.7978845608 + 0.0356774081 * z * z))
    own = np.arange(len(scores))
    below[own, :, own] = 1.0
    chances = below.prod(axis=2).mean(axis=1)
    return dict(zip((one.arm for one in scores), (chances / chances.sum()).tolist(), strict=True))
