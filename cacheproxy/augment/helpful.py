"""Helpful: how probable it is that an answer given with an example is good, learnt as rewards come. Pure; numpy only.

Likeness says little of helpfulness (IC-Cache, SOSP 2025): the features hold what else is known of an example. The
model is a logistic regression with a Gaussian posterior: one line for all questions, and each category's own small
deviation from it. A reward moves both by one Laplace step (Newton's method on one number, since a reward depends on one
sum), in constant time. What is learnt fades toward the prior: models, callers and answers change.
"""

from __future__ import annotations

import math
from operator import mul
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cacheproxy.augment.example import Example

    Floats = NDArray[np.float64]

FEATURES = (
    "one",
    "question_cosine",
    "answer_cosine",
    "question_length",
    "example_length",
    "quality",
    "source",
    "age",
    "offloads",
    "same_category",
)
"""Each between -2 and 2. Another list, order or scale is another `VERSION`: weights learnt before mean nothing then."""

VERSION = 1

MOST_CATEGORIES = 256
"""Further ones are scored by what all have in common."""

_EXPECTED = np.array([-0.5, 1.0, 0.25, 0.0, 0.0, 1.0, 0.5, -0.25, 0.5, 0.5])
"""Weights before anything is learnt: a new example of the same category, by the large model, of unknown quality, is as
likely as not to help at a cosine of 0.7, and does two times in three at 0.9."""
_SPREADS = np.array([1.0, 1.0, *[0.5] * (len(FEATURES) - 2)])
"""Standard deviations expected of those weights."""
_OWN_SPREADS = np.array([0.7, *[0.3] * (len(FEATURES) - 1)])
"""The same of what a category has of its own."""
_SOURCES = {"small": -1.0, "large": 0.0, "replayed": 0.5, "operator": 1.0}
_MEMORY = 5_000
"""Rewards after which one has faded to a third."""
_MONTH = math.log1p(30 * 24)
_LONGEST = math.log2(2048)
_STEPS = 12
_EDGE = 30.0
_Finite = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]


def features(example: Example, question_tokens: int) -> Floats:
    """Return what is known of an example for a question of so many tokens, of shape (len(FEATURES),), always finite."""
    return np.array(_known(example, question_tokens))


def _known(example: Example, question_tokens: int) -> tuple[float, ...]:
    hours = max(example.age_s, 0.0) / 3600
    return (
        1.0,
        _within((example.question_cosine - 0.7) / 0.3, -2.0, 1.0),
        _within((example.answer_cosine - 0.5) / 0.5, -2.0, 1.0),
        _length(question_tokens),
        _length(example.tokens),
        _within(2.0 * example.quality - 1.0, -1.0, 1.0),
        _SOURCES[example.source],
        _within(math.log1p(hours) / _MONTH, 0.0, 2.0),
        _within((example.offloads - 1.0) / (1.0 + max(example.offloads, 0.0)), -1.0, 1.0),
        float(example.same_category),
    )


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A posterior as it is written: its mean and, row by row, its precision."""

    mean: tuple[_Finite, ...]
    precision: tuple[_Finite, ...]


class Learnt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Helpfulness as it is written."""

    version: int
    features: tuple[str, ...]
    common: Weights
    own: dict[str, Weights]


class Helpfulness:
    """The proxy u(question, example): scores examples before they are used, learns from what came of it.

    Not for several threads at once.
    """

    __slots__ = ("_common", "_own", "_sums")

    def __init__(self) -> None:
        self._common = _Posterior(_EXPECTED, _SPREADS)
        self._own: dict[str, _Posterior] = {}
        self._sums: dict[str, tuple[float, ...]] = {}

    def score(self, example: Example, question_tokens: int, category: str = "") -> float:
        """Return how probable it is that an answer given with this example is good, in (0, 1)."""
        return _sigmoid(sum(map(mul, self.weights(category), _known(example, question_tokens))))

    def learn(self, given: Floats, reward: float, *, category: str = "", weight: float = 1.0) -> None:
        """Take the reward, in [0, 1], of an answer that was given with an example of these features.

        An answer that had several examples is one call for each, their weights summing to that of the reward. What is
        outside [0, 1] counts as its nearer end; what is no number, or weighs nothing, as nothing.
        """
        if not (math.isfinite(reward) and math.isfinite(weight) and weight > 0 and np.isfinite(given).all()):
            return
        told = min(1.0, max(0.0, reward))
        self._common.learn(given, told, min(weight, 1.0), 0.0)
        own = self._own.get(category)
        if own is None and category and len(self._own) < MOST_CATEGORIES:
            own = self._own[category] = _Posterior(np.zeros(len(FEATURES)), _OWN_SPREADS)
        if own is not None:
            own.learn(given, told, min(weight, 1.0), float(self._common.mean @ given))
        self._sums.clear()

    def weights(self, category: str = "") -> tuple[float, ...]:
        """Return what each feature adds to the log-odds in a category, in the order of FEATURES."""
        own = self._own.get(category)
        known = "" if own is None else category
        found = self._sums.get(known)
        if found is None:
            mean = self._common.mean if own is None else self._common.mean + own.mean
            found = self._sums[known] = tuple(mean.tolist())
        return found

    def to_bytes(self) -> bytes:
        """Return all that was learnt; `from_bytes` reads it."""
        own = {category: posterior.written() for category, posterior in self._own.items()}
        return msgspec.json.encode(Learnt(version=VERSION, features=FEATURES, common=self._common.written(), own=own))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Helpfulness:
        """Read what `to_bytes` wrote. Raises ConfigError for another version's and for what is damaged."""
        try:
            learnt = msgspec.json.decode(raw, type=Learnt)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise ConfigError(f"what was learnt of helpful examples cannot be read ({exc}); it starts afresh") from exc
        if (learnt.version, learnt.features) != (VERSION, FEATURES) or len(learnt.own) > MOST_CATEGORIES:
            raise ConfigError("what was learnt of helpful examples is another version's; it starts afresh")
        made = cls()
        made._common = _Posterior.of(learnt.common, _EXPECTED, _SPREADS)
        made._own = {
            category: _Posterior.of(weights, np.zeros(len(FEATURES)), _OWN_SPREADS)
            for category, weights in learnt.own.items()
        }
        return made


class _Posterior:
    """A Gaussian over weights, and the one it fades back to."""

    __slots__ = ("_precision", "_prior_precision", "_prior_pull", "mean")

    def __init__(self, mean: Floats, spreads: Floats) -> None:
        self.mean = mean
        self._precision: Floats = np.diag(spreads**-2.0)
        self._prior_precision = self._precision
        self._prior_pull = self._precision @ mean

    @classmethod
    def of(cls, written: Weights, mean: Floats, spreads: Floats) -> _Posterior:
        """Return the posterior that was written. Raises ConfigError where it is none."""
        made, size = cls(mean, spreads), mean.size
        if len(written.mean) != size or len(written.precision) != size * size:
            raise ConfigError("what was learnt of helpful examples is damaged; it starts afresh")
        precision = np.array(written.precision).reshape(size, size)
        if not np.allclose(precision, precision.T) or float(np.linalg.eigvalsh(precision)[0]) <= 0.0:
            raise ConfigError("what was learnt of helpful examples is damaged; it starts afresh")
        made.mean, made._precision = np.array(written.mean), precision
        return made

    def written(self) -> Weights:
        """Return what is to be written down."""
        return Weights(mean=tuple(self.mean.tolist()), precision=tuple(self._precision.ravel().tolist()))

    def learn(self, given: Floats, reward: float, weight: float, offset: float) -> None:
        """Take a reward of what has log-odds `offset` already."""
        fading = weight / _MEMORY
        pull = (1.0 - fading) * (self._precision @ self.mean) + fading * self._prior_pull
        precision = (1.0 - fading) * self._precision + fading * self._prior_precision
        mean, along = np.linalg.solve(precision, np.column_stack((pull, given))).T
        variance = float(given @ along)
        at = _mode(float(mean @ given), variance, reward, weight, offset)
        chance = _sigmoid(offset + at)
        self.mean = mean + weight * (reward - chance) * along
        self._precision = precision + weight * chance * (1.0 - chance) * np.outer(given, given)


def _mode(before: float, variance: float, reward: float, weight: float, offset: float) -> float:
    """Return the likeliest sum, given one that was normal around `before`, and a reward.

    Newton's method, kept within what can be: no reward surprises by more than 1.
    """
    low = before - weight * variance
    high = before + weight * variance
    at = before
    for _ in range(_STEPS):
        chance = _sigmoid(offset + at)
        slope = (at - before) / variance - weight * (reward - chance)
        low, high = (low, min(high, at)) if slope > 0 else (max(low, at), high)
        at = min(high, max(low, at - slope / (1.0 / variance + weight * chance * (1.0 - chance))))
    return at


def _within(value: float, low: float, high: float) -> float:
    return min(high, max(low, value)) if value == value else 0.0  # NaN tells nothing


def _length(tokens: int) -> float:
    """0 for 1 token, 1 for the 2,048 that a small window holds; centred on 45 tokens."""
    return _within(math.log2(max(tokens, 1)) / _LONGEST - 0.5, -0.5, 0.5)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(_EDGE, max(-_EDGE, value))))
