"""The rules that the error budget benchmark compares: each is asked about one candidate after another, and told labels.

`vCache` is written from the rule's mathematics (vCache, arXiv 2502.03771: a threshold for each entry, learnt online).
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cacheproxy.policy.budget import Account
from cacheproxy.policy.trust import NEW, Effect

if TYPE_CHECKING:
    from random import Random

_WINDOW = 0.73
"""From where on labels of what was refused count, where a rule may serve anything."""
EPSILONS = np.linspace(0.01, 0.5, 50)


@dataclass(frozen=True, slots=True)
class Shown:
    """A candidate: its entry, its similarity, and a scorer's probability that its answer is right."""

    entry: int
    similarity: float
    probability: float


class Rule(Protocol):
    """Decides what is served; is told what is right where that would be found out in earnest."""

    labels: int
    explored: int

    def serves(self, shown: Shown) -> bool:
        """Whether the answer is served."""
        ...

    def tell(self, shown: Shown, *, served: bool, right: bool) -> None:
        """Take note of what came of it; a label is only to be used where it would be known."""
        ...


@dataclass(slots=True, kw_only=True)
class Static:
    """One threshold on the probability."""

    threshold: float
    labels: int = 0
    explored: int = 0

    def serves(self, shown: Shown) -> bool:
        """Whether the answer is served."""
        return shown.probability >= self.threshold

    def tell(self, shown: Shown, *, served: bool, right: bool) -> None:
        """Learn nothing."""


@dataclass(slots=True, kw_only=True)
class Ours:
    """The hierarchical posterior with a ceiling on risk. Hits are labelled at `shadow`, refused ones at `explore`."""

    delta: float
    shadow: float
    explore: float
    random: Random
    first: float = 0.9
    """No probability below it is served while nothing is known: in earnest, the pack's minimum."""
    least: float = 0.0
    """No probability below it is ever served: in earnest, the pack's minimum, too."""
    patience: int = 16
    """Of 256 candidates, for how many a label counts: then the ceiling is taken anew. In earnest with each label."""
    shrink: bool = True
    """Whether entries have effects of their own."""
    labels: int = 0
    explored: int = 0
    account: Account = field(default_factory=Account)
    effects: dict[int, Effect] = field(default_factory=dict)
    ceiling: float = 0.0
    due: int = 0

    def __post_init__(self) -> None:
        self.ceiling = self.account.ceiling(self.delta)

    def serves(self, shown: Shown) -> bool:
        """Whether the answer is served: probable enough, and its risk below the ceiling."""
        self.account.see(shown.probability)
        self.due += 1
        if self.due >= 256:
            self._again()
        effect = self.effects.get(shown.entry, NEW)
        if self.ceiling >= 1.0:
            return shown.probability >= self.first
        return shown.probability >= self.least and self.account.allows(shown.probability, effect, self.ceiling)

    def tell(self, shown: Shown, *, served: bool, right: bool) -> None:
        """Learn from a share of hits and of refusals, as shadow samples and explorations do."""
        if self.random.random() >= (self.shadow if served else self.explore):
            return
        self.labels += 1
        self.explored += not served
        effect = self.effects.get(shown.entry, NEW)
        effect = self.account.label(shown.probability, effect, right=right, hit=served, least=self.least or _WINDOW)
        if self.shrink:
            self.effects[shown.entry] = effect
        self.due += self.patience

    def _again(self) -> None:
        self.due = 0
        self.ceiling = self.account.settled(self.delta, self.ceiling)


class _Observed:
    """One entry's labels, and the fit of P(right | s) = sigmoid(steepness * (s - at)) to them."""

    __slots__ = ("at", "dirty", "labels", "spread", "steepness", "theta")

    def __init__(self) -> None:
        self.labels: list[tuple[float, bool]] = [(0.0, False), (1.0, True)]
        self.dirty = True
        self.at = self.steepness = self.spread = 0.0
        self.theta: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None

    def fit(self) -> None:
        self.dirty = False
        wrong = [s for s, right in self.labels if not right]
        rights = [s for s, right in self.labels if right]
        if max(wrong) < min(rights):  # separable: the threshold is anywhere in the gap, and the slope has no end
            gap = min(rights) - max(wrong)
            self.at, self.spread = (min(rights) + max(wrong)) / 2, gap / math.sqrt(12.0)
            self.steepness = 2.0 / max(self.spread, 1e-3)
            return
        s = np.array([one for one, _ in self.labels])
        y = np.array([right for _, right in self.labels], dtype=float)
        x = np.stack([s, np.ones_like(s)], axis=1)
        theta = self.theta if self.theta is not None else np.array([1.0, -0.5])
        ridge = np.diag([1e-3, 1e-3])
        for _ in range(25):
            p = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
            bend = (x * (p * (1 - p))[:, None]).T @ x + ridge
            step = np.linalg.solve(bend, x.T @ (y - p) - ridge @ theta)
            theta = theta + step
            if np.abs(step).max() < 1e-4:
                break
        self.theta = theta
        self.steepness = max(float(theta[0]), 1e-3)
        self.at = float(-theta[1] / self.steepness)
        # Delta method: t = -b/g, so dt = (b/g^2, -1/g) on (g, b).
        slope = np.array([theta[1] / self.steepness**2, -1 / self.steepness])
        self.spread = math.sqrt(max(0.0, float(slope @ np.linalg.solve(bend, slope))))


@dataclass(slots=True, kw_only=True)
class VCache:
    """A threshold for each entry, without anything shared. Explores with the least probability that keeps its bound.

    Its bound is on wrong answers among all questions. With `strict` it serves only where it finds the wrong ones
    among its hits within delta, so that both rules promise the same.
    """

    delta: float
    random: Random
    by_probability: bool = False
    strict: bool = False
    labels: int = 0
    explored: int = 0
    entries: dict[int, _Observed] = field(default_factory=dict)

    def serves(self, shown: Shown) -> bool:
        """Whether the answer is served: else the question explores."""
        observed = self.entries.get(shown.entry)
        if observed is None or len(observed.labels) < _FEWEST:
            return False
        if observed.dirty:
            observed.fit()
        reach = observed.at + QUANTILES * observed.spread
        alpha = (1 - EPSILONS) / (1 + np.exp(-np.clip(observed.steepness * (self._s(shown) - reach), -30, 30)))
        if self.strict:
            return bool(1 - alpha.max() <= self.delta)
        explore = np.clip(1 - self.delta / (1 - alpha), 0.0, 1.0).min()
        return self.random.random() >= float(explore)

    def tell(self, shown: Shown, *, served: bool, right: bool) -> None:
        """Learn from explorations only."""
        if served:
            return
        self.labels += 1
        self.explored += 1
        observed = self.entries.setdefault(shown.entry, _Observed())
        insort(observed.labels, (self._s(shown), right))
        observed.dirty = True

    def _s(self, shown: Shown) -> float:
        return shown.probability if self.by_probability else shown.similarity


_FEWEST = 6


def _quantile(share: float) -> float:
    """Return z with P(Z <= z) = share for a standard normal Z, by halving."""
    low, high = -8.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < share else (low, middle)
    return (low + high) / 2


QUANTILES = np.array([_quantile(1 - epsilon) for epsilon in EPSILONS])
