"""Belief: how good one arm's answers are thought to be, by what is known before asking; how often it answers. Pure.

Bayesian linear regression with known noise (Bishop, 2006, section 3.3) whose data fade and whose prior does not: what
is not asked for long is no better known than at first. A row is a vector of `DIM` numbers, the first one always 1.
What other replicas learnt is added, each one's sums faded by its own rewards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DIM = 6
_NOISE = 0.4**2
"""Variance of a reward around its mean: near 0.25 where half of the answers are good, 0.09 where nine in ten are."""
_SLOPE_SPREAD = 0.15
"""Standard deviation expected of slopes: from one end of a feature to the other quality moves by a third."""
_FALL = 0.3
"""Of quality, that is looked for: models that change and examples that go stale do it at once, not by and by."""
_MOST_DOUBTED = 256
_NEGATIVE = -1e-6
"""Rounding leaves eigenvalues a little below 0, in proportion to what was summed."""
_Finite = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Quality expected where nothing is known: its mean, in [0, 1], and its standard deviation."""

    mean: float
    spread: float


class Sums(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A belief as it is written: the faded weight of its rewards, and their sums row by row."""

    weight: _Finite
    doubt: _Finite = 0.0
    squares: tuple[_Finite, ...]
    products: tuple[_Finite, ...]


class Belief:
    """Quality as a linear function of a row, learnt from rewards in [0, 1]. Not for several threads at once."""

    __slots__ = (
        "_doubted",
        "_heard",
        "_known",
        "_others",
        "_prior",
        "_products",
        "_squares",
        "doubt",
        "trusts",
        "weight",
    )

    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        self._squares: Floats = np.zeros((DIM, DIM))
        self._products: Floats = np.zeros(DIM)
        self._known: tuple[Floats, Floats] | None = None
        self._others: tuple[Floats, Floats, float] | None = None
        self._heard: tuple[Belief, ...] = ()
        self._doubted: tuple[Belief, ...] = ()
        self.trusts = True
        """Whether what others learnt counts: not after a surprise, until enough was learnt here since."""
        self.weight = 0.0
        """Of the rewards it remembers, faded: one of weight 1 just now counts 1."""
        self.doubt = 0.0
        """How much likelier the last rewards are if quality fell, as the logarithm of a ratio; see `surprise`."""

    def expects(self, row: Floats) -> tuple[float, float]:
        """Return mean and standard deviation of the quality at `row`; the mean may lie a little outside [0, 1]."""
        if self._known is None:
            self._known = self._solve()
        mean, covariance = self._known
        return float(row @ mean), math.sqrt(max(0.0, float(row @ covariance @ row)))

    @property
    def known_by(self) -> float:
        """The weight of all rewards that it goes by, other replicas' among them."""
        return self.weight + (self._others[2] if self._others is not None and self.trusts else 0.0)

    def hear(self, others: Sequence[Belief]) -> None:
        """Go by what others learnt, too, in place of what was heard of them before.

        The very same word as at a surprise does not count again: who still learns says something else by and by.
        """
        others = self._heard = tuple(other for other in others if not any(other is one for one in self._doubted))
        self._known = None
        self._others = None
        if others:
            squares, products = np.zeros((DIM, DIM)), np.zeros(DIM)
            for other in others:
                squares += other._squares
                products += other._products
            self._others = squares, products, sum(other.weight for other in others)

    def doubt_others(self) -> None:
        """Go by what was learnt here alone, until `trust_others`."""
        self._doubted = (*self._heard, *self._doubted)[:_MOST_DOUBTED]
        self.trusts, self._known = False, None

    def trust_others(self) -> None:
        """Go by what others learnt since, too."""
        self.trusts, self._known = True, None
        self.hear(self._heard)

    @property
    def seen(self) -> Floats:
        """The sum of the rows it goes by, each by its faded weight: the first number is that of them all."""
        row: Floats = self._squares[0]
        return row + self._others[0][0] if self._others is not None and self.trusts else row

    def surprise(self, row: Floats, reward: float, weight: float) -> float:
        """Return the doubt in what was learnt, after a reward that is about to be: it grows where rewards are too low.

        The rule of cumulated sums (Page, 1954), of quality lower by 0.3 against quality as expected: where nothing has
        changed, it takes e^h rewards on average, at least, to exceed h.
        """
        expected = min(0.95, max(0.05, self.expects(row)[0]))
        fallen = max(0.02, expected - _FALL)
        told = min(1.0, max(0.0, reward))
        ratio = told * math.log(fallen / expected) + (1.0 - told) * math.log((1.0 - fallen) / (1.0 - expected))
        self.doubt = max(0.0, self.doubt + weight * ratio)
        return self.doubt

    def learn(self, row: Floats, reward: float, weight: float) -> None:
        """Take a reward. What is outside [0, 1] counts as its nearer end; no number, or no weight, as nothing."""
        if not (math.isfinite(reward) and math.isfinite(weight) and weight > 0):
            return
        self._squares += weight * np.outer(row, row)
        self._products += weight * min(1.0, max(0.0, reward)) * row
        self.weight += weight
        self._known = None

    def fade(self, kept: float) -> None:
        """Keep this share of what was learnt."""
        self._squares *= kept
        self._products *= kept
        self.weight *= kept
        self._known = None

    def sums(self) -> Sums:
        """Return what is to be written down."""
        squares, products = self._squares.ravel().tolist(), self._products.tolist()
        return Sums(weight=self.weight, doubt=self.doubt, squares=tuple(squares), products=tuple(products))

    @classmethod
    def of(cls, sums: Sums, prior: Prior) -> Belief:
        """Return the belief that was written down. Raises ConfigError for sums that no rewards can have."""
        if len(sums.squares) != DIM * DIM or len(sums.products) != DIM or sums.weight < 0:
            raise ConfigError("what is believed of an arm is not of this version; it starts afresh")
        belief = cls(prior)
        squares = np.array(sums.squares).reshape(DIM, DIM)
        if not np.allclose(squares, squares.T) or float(np.linalg.eigvalsh(squares)[0]) < _NEGATIVE * (1 + sums.weight):
            raise ConfigError("what is believed of an arm is damaged; it starts afresh")
        belief._squares, belief._products = squares, np.array(sums.products)
        belief.weight, belief.doubt = sums.weight, sums.doubt
        return belief

    def _solve(self) -> tuple[Floats, Floats]:
        spreads = np.full(DIM, _SLOPE_SPREAD)
        spreads[0] = self._prior.spread
        trust = spreads**-2.0
        squares, products = self._squares, self._products
        if self._others is not None and self.trusts:
            squares, products = squares + self._others[0], products + self._others[1]
        covariance = np.asarray(np.linalg.inv(np.diag(trust) + squares / _NOISE), dtype=np.float64)
        pull = products / _NOISE
        pull[0] += trust[0] * self._prior.mean
        return covariance @ pull, covariance


RELIABLE = 0.98
_RELIABLE_RUNS = 5.0
_RELIABLE_HALF_S = 120.0
"""Whether an arm answers at all is expected at 98 %, as if from 5 runs, and half forgotten after two minutes."""


@dataclass(slots=True)
class Runs:
    """How often an arm answered of late."""

    good: float = 0.0
    failed: float = 0.0
    at_s: float = 0.0

    def take(self, now_s: float, *, ok: bool) -> None:
        """Count a run."""
        kept = self._kept(now_s)
        self.good = self.good * kept + ok
        self.failed = self.failed * kept + (not ok)
        self.at_s = max(self.at_s, now_s)

    def share(self, now_s: float) -> float:
        """Return how probable it is to answer now."""
        kept = self._kept(now_s)
        good = self.good * kept + RELIABLE * _RELIABLE_RUNS
        return good / (kept * (self.good + self.failed) + _RELIABLE_RUNS)

    def _kept(self, now_s: float) -> float:
        return math.exp2(-max(0.0, now_s - self.at_s) / _RELIABLE_HALF_S)
