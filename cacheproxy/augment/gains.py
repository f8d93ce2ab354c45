"""Gains: how much better answers are with examples than without, and from what helpfulness on that pays. Pure.

The proxy of `helpful.py` says which example is better; whether it is better than none is found by trying both. Samples
must be drawn by chance (which of two arms answered, or both of them), or they compare two sorts of questions; and some
must have examples that the threshold would leave out, or it can only rise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from cacheproxy.augment.kindred import Evidence, Kindred
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

VERSION = 1
BINS = 10
"""Equal parts of the scores from 0 to 1."""
MOST_CATEGORIES = 256
"""Tries of further ones are kept together."""

LEAST = 0.05
"""Gain that pays for the tokens and the time that examples take; a hundred tries can just tell it from none."""

NEVER = 1.0
"""A threshold that no score is above."""

_EXPECTED = 0.2 * (np.arange(BINS) + 0.5) / BINS - 0.03
"""Gains before anything is tried: enough from a score of 0.4 on, and 0.16 at most."""
_EVEN = 2.0
"""Good answers, and bad ones, that an arm counts as having had before: how sure a try is, where there are few."""
_MEMORY = 400
"""Tries in one part, with or without, after which one has faded to a third."""
_WITHOUT, _WITH = 0, 1
_Finite = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What is known of the scores from `score` up to the next part: the gain expected, and the category's own tries."""

    score: float
    gain: float
    tries_with: float
    tries_without: float


class Tries(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Weights and weighted rewards, without and with examples, part by part."""

    weights: tuple[tuple[_Finite, ...], tuple[_Finite, ...]]
    rewards: tuple[tuple[_Finite, ...], tuple[_Finite, ...]]


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Gains as they are written."""

    version: int
    categories: dict[str, Tries]


class Gains:
    """Learns what examples gain by how helpful they were thought to be. Not for several threads at once."""

    __slots__ = ("_evidence", "_kindred", "_parts", "_thresholds")

    def __init__(self) -> None:
        self._parts: dict[str, _Parts] = {}
        self._thresholds: dict[tuple[str, float], float] = {}
        self._evidence: dict[str, Evidence] = {}
        self._kindred: Kindred | None = None

    def learn(self, category: str, score: float, reward: float, *, augmented: bool, weight: float = 1.0) -> None:
        """Take the reward, in [0, 1], of an answer that was given with examples, or without.

        `score` is the mean helpfulness of the examples that it had, or would have had. A question that was answered
        both ways is two calls. What is no number, or weighs nothing, counts as nothing.
        """
        if not (math.isfinite(score) and math.isfinite(reward) and math.isfinite(weight) and weight > 0):
            return
        part = min(BINS - 1, max(0, int(score * BINS)))
        told, counts = min(1.0, max(0.0, reward)), min(1.0, weight)
        arm = _WITH if augmented else _WITHOUT
        if category not in self._parts and len(self._parts) >= MOST_CATEGORIES:
            category = ""
        self._parts.setdefault(category, _Parts()).add(arm, part, told, counts)
        self._evidence.pop(category, None)
        self._thresholds.clear()
        self._kindred = None

    def threshold(self, category: str, *, least: float = LEAST) -> float:
        """Return theta: the lowest score from which on examples are expected to gain more than `least`, else NEVER.

        Sets of examples are worth using whose score is above it.
        """
        found = self._thresholds.get((category, least))
        if found is None:
            paying = (known.score for known in self.known(category) if known.gain > least)
            found = self._thresholds[category, least] = next(paying, NEVER)
        return found

    def known(self, category: str) -> tuple[Gain, ...]:
        """Return what is expected of each part of the scores, lowest first; gains never fall as scores rise.

        A category is expected to be like the others until its own tries say more (`kindred.py`).
        """
        if self._kindred is None:
            for name in self._parts.keys() - self._evidence.keys():
                self._evidence[name] = self._parts[name].evidence()
            self._kindred = Kindred(_EXPECTED, [self._evidence[name] for name in self._parts])
        own = self._parts.get(category, _Parts())
        at = list(self._parts).index(category) if category in self._parts else None
        found = self._kindred.estimate(at)
        rising = _rising(found.gains.tolist(), (1.0 / found.variances).tolist())
        return tuple(
            Gain(
                score=part / BINS,
                gain=rising[part],
                tries_with=float(own.weights[_WITH, part]),
                tries_without=float(own.weights[_WITHOUT, part]),
            )
            for part in range(BINS)
        )

    def to_bytes(self) -> bytes:
        """Return all that was learnt; `from_bytes` reads it."""
        categories = {category: parts.written() for category, parts in self._parts.items()}
        return msgspec.json.encode(Written(version=VERSION, categories=categories))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Gains:
        """Read what `to_bytes` wrote. Raises ConfigError for another version's and for what is damaged."""
        try:
            written = msgspec.json.decode(raw, type=Written)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise ConfigError(f"what examples gained cannot be read ({exc}); it starts afresh") from exc
        if written.version != VERSION or len(written.categories) > MOST_CATEGORIES + 1:
            raise ConfigError("what examples gained is another version's; it starts afresh")
        made = cls()
        made._parts = {category: _Parts.of(tries) for category, tries in written.categories.items()}
        return made


class _Parts:
    """Tries by arm and part: arrays of shape (2, BINS)."""

    __slots__ = ("rewards", "weights")

    def __init__(self) -> None:
        self.weights: Floats = np.zeros((2, BINS))
        self.rewards: Floats = np.zeros((2, BINS))

    @classmethod
    def of(cls, tries: Tries) -> _Parts:
        """Return what was written. Raises ConfigError for what no tries can have summed to."""
        made = cls()
        if any(len(row) != BINS for row in (*tries.weights, *tries.rewards)):
            raise ConfigError("what examples gained is another version's; it starts afresh")
        made.weights, made.rewards = np.array(tries.weights), np.array(tries.rewards)
        if bool((made.rewards > made.weights + 1e-6).any()):
            raise ConfigError("what examples gained is damaged; it starts afresh")
        return made

    def written(self) -> Tries:
        """Return what is to be written down."""
        weights, rewards = self.weights.tolist(), self.rewards.tolist()
        return Tries(weights=(tuple(weights[0]), tuple(weights[1])), rewards=(tuple(rewards[0]), tuple(rewards[1])))

    def add(self, arm: int, part: int, reward: float, weight: float) -> None:
        """Take one try."""
        kept = 1.0 - weight / _MEMORY
        self.weights[arm, part] = kept * self.weights[arm, part] + weight
        self.rewards[arm, part] = kept * self.rewards[arm, part] + weight * reward

    def evidence(self) -> Evidence:
        """Return what these tries say by themselves.

        Of a difference of two means, the harmonic mean of both numbers tells; the error of one pair is that of a yes
        and a no as frequent as the category's, so that what is never right, or always, is soon believed.
        """
        without, with_ = self.weights
        pairs = 2.0 * without * with_ / np.maximum(without + with_, 1e-12)
        means = self.rewards / np.maximum(self.weights, 1e-12)
        often = (self.rewards.sum(axis=1) + _EVEN) / (self.weights.sum(axis=1) + 2.0 * _EVEN)
        error = float((often * (1.0 - often)).sum())
        return Evidence(gains=means[_WITH] - means[_WITHOUT], precisions=pairs / error)


def _rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the nearest values that never fall: neighbours that do share their weighted mean (isotonic regression)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (left, left_weight, left_size), (right, right_weight, right_size) = pools[-2:]
            both = left_weight + right_weight
            pools[-2:] = [((left * left_weight + right * right_weight) / both, both, left_size + right_size)]
    return [value for value, _, size in pools for _ in range(size)]
