"""Budget: which risk a category may take, so that its share of wrong answers among hits stays within delta. Pure.

The most hits for a share of wrong ones come from one ceiling on risk: serve whatever is below it. The ceiling is the
highest at which, with labels and model as uncertain as they are, the exact 95 % upper bound over the next `HORIZON`
hits stays within delta (docs/verification.md, section Error budget).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

from cacheproxy.policy import trust
from cacheproxy.policy.bound import Share, most_within, share
from cacheproxy.policy.trust import Effect, Line

HORIZON = 5000
"""Hits over which the bound is to hold."""
FEWEST = 30
"""Labels before which nothing is known, unless they tell plainly: the pack's own minimum decides."""
_PLAIN = 5
"""Wrong hits, among however few, that may tell plainly; one alone may be chance."""
_SURE = 1.0
"""Standard deviations kept free: chance, and what is not known of the model."""
_RISE, _MARK = 0.1, 0.05
"""Of a rise, this share is taken with each label, and none that is smaller than this."""
_USUAL = 0.95
"""Taken for a probability that nobody remembers."""
_NEAR = 0.5
"""Log-odds below what is served within which a label of what was refused tells of it, too: a line is straight over a
short way."""
_BINS = 72
_LOWEST, _HIGHEST = -1.0, 8.0
_MOST_SEEN = 20_000.0
_MOST_LABELS = 4000
_FITTING = 250.0
"""Labels that the belief itself weighs, when it is compared with labels."""
_FITTING_MEMORY = 1000.0
"""Labels after which what was compared has faded: this is what notices drift."""


@dataclass(slots=True)
class Account:
    """What is known of one category. A state, changed by `see` and `label`; every decision reads it, none changes it.

    `seen` counts candidates by their log-odds, so that it is known what a ceiling would serve. `wrong` of `labelled`
    hits, drawn at random, were wrong. `fit_wrong` and `fit_expected` compare labels with what was believed before.
    """

    line: Line = field(default_factory=Line)
    seen: list[float] = field(default_factory=lambda: [0.0] * _BINS)
    total: float = 0.0
    labels: int = 0
    labelled: int = 0
    wrong: int = 0
    fit_wrong: float = 0.0
    fit_expected: float = 0.0
    fit_labels: float = 0.0

    def see(self, probability: float) -> None:
        """Count a candidate that nothing but its probability stands against."""
        self.seen[_bin(probability)] += 1.0
        self.total += 1.0
        if self.total > _MOST_SEEN:
            self.seen = [count / 2 for count in self.seen]
            self.total /= 2

    def label(self, probability: float, effect: Effect, *, right: bool, hit: bool, least: float) -> Effect:
        """Learn from a label, and return the entry's new effect. `hit`: of a served answer that was drawn at random.

        `least` is the probability from which on the category serves. What was refused far below it tells nothing of
        its category; what was served always does.
        """
        risk = trust.belief(self.line, trust.distrust(effect), probability).risk
        keep = 1.0 - 1.0 / _FITTING_MEMORY
        if hit:
            self.fit_wrong = self.fit_wrong * keep + (not right)
            self.fit_expected = self.fit_expected * keep + risk
            self.fit_labels = self.fit_labels * keep + 1.0
            self.labelled += 1
            self.wrong += not right
            if self.labelled > _MOST_LABELS:
                self.labelled, self.wrong = self.labelled // 2, self.wrong // 2
        if not hit and trust.place(probability) < trust.place(least) - _NEAR:
            return self.label_entry(probability, effect, right=right)
        self.line, effect = trust.learn(self.line, effect, probability, right=right)
        self.labels += 1
        return effect

    def label_entry(self, probability: float | None, effect: Effect, *, right: bool) -> Effect:
        """Return an entry's effect after a word on it that tells nothing of its category."""
        believed = trust.belief(self.line, effect, _USUAL if probability is None else probability)
        return trust.learn_entry(effect, believed, right=right)

    def known(self, delta: float) -> bool:
        """Whether there are labels enough to go by, or so many wrong ones among few that delta is surely exceeded."""
        if self.labelled >= FEWEST:
            return True
        return self.wrong >= _PLAIN and self.share.low > delta

    @property
    def share(self) -> Share:
        """The share of wrong ones among the hits labelled at random, with its exact interval."""
        return share(self.wrong, self.labelled)

    def ceiling(self, delta: float) -> float:
        """Return the highest risk that may be taken; 0 serves nothing. 1 while nothing is known."""
        return self._ceiling(delta) if self.known(delta) else 1.0

    def settled(self, delta: float, held: float | None) -> float:
        """Return the ceiling to hold after `held`: a lower one at once, a higher one in small steps.

        Where there was one, there is one: labels that told plainly may be fewer than that after a right one.
        """
        if held is None or held >= 1.0:
            return self.ceiling(delta)
        found = self._ceiling(delta)
        if found <= held:
            return found
        return held + _RISE * (found - held) if found > held * (1.0 + _MARK) else held

    def least(self, ceiling: float) -> float:
        """Return the lowest probability that is served of a new entry under a ceiling; 0 while nothing is known."""
        if ceiling >= 1.0:
            return 0.0
        low, high = 0.0, 1.0
        if trust.belief(self.line, trust.MEAN, high).risk > ceiling:
            return 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if trust.belief(self.line, trust.MEAN, middle).risk <= ceiling else (middle, high)
        return high

    def allows(self, probability: float, effect: Effect, ceiling: float) -> bool:
        """Whether an answer may be served under a ceiling."""
        return ceiling >= 1.0 or trust.belief(self.line, trust.distrust(effect), probability).risk <= ceiling

    def _ceiling(self, delta: float) -> float:
        allowed = most_wrong(delta) / HORIZON
        excess = self._excess()
        weight = wrong = by_offset = by_slope = 0.0
        found = 0.0
        for at in range(_BINS - 1, -1, -1):
            if not self.seen[at]:
                continue
            risk, offset, slope = trust.slopes(self.line, _probability(at))
            weight += self.seen[at]
            wrong += self.seen[at] * risk
            by_offset += self.seen[at] * offset
            by_slope += self.seen[at] * slope
            expected = excess + wrong / weight
            spread = self._spread(by_offset / weight, by_slope / weight)
            spread += expected / HORIZON
            if expected + _SURE * math.sqrt(spread) <= allowed:
                found = max(found, risk)
        return found

    def _excess(self) -> float:
        """Return how much larger the share of wrong hits was than was believed before their labels; never negative.

        Added, not multiplied: what a verifier is surest of has an error of its own that no line through odds shows.
        """
        return max(0.0, self.fit_wrong - self.fit_expected) / (_FITTING + self.fit_labels)

    def _spread(self, offset: float, slope: float) -> float:
        line = self.line
        return max(
            0.0,
            offset * offset * line.offset_variance
            + 2 * offset * slope * line.covariance
            + slope * slope * line.slope_variance,
        )


@lru_cache(maxsize=64)
def most_wrong(delta: float) -> int:
    """Return how many of `HORIZON` hits may be wrong for the exact 95 % upper bound of their share to reach delta."""
    return most_within(delta, HORIZON)


def _bin(probability: float) -> int:
    at = (trust.place(probability) - _LOWEST) / (_HIGHEST - _LOWEST)
    return max(0, min(_BINS - 1, int(at * _BINS)))


def _probability(at: int) -> float:
    """Return the probability in the middle of a bin."""
    odds = _LOWEST + (at + 0.5) * (_HIGHEST - _LOWEST) / _BINS
    return 1.0 / (1.0 + math.exp(-odds))
