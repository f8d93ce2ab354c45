"""Heads: how like the examples of each category a vector is. Two kinds; each also scores its own examples held out.

Vectors are unit vectors; likenesses have a scale of their own, which `policy/odds.py` turns into probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cacheproxy.policy.odds import HeldOut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_SHARPNESS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""In units of one over the standard deviation of the examples' cosines: from a centroid nearly to the nearest one."""
_SAME = 1e-3
"""A standard deviation of cosines below it: the examples are copies, or one pair."""
_RIDGES = (1e-3, 1e-4)
_FOLDS = 5
_STEPS = 200
_STILL = 1e-3


class Head(Protocol):
    """Scores vectors against categories."""

    def likenesses(self, vectors: NDArray[np.float32]) -> Floats:
        """Return shape (m, categories) for unit vectors of shape (m, dim)."""
        ...

    def of(self, vector: NDArray[np.float32]) -> list[float]:
        """Return the same of one unit vector of shape (dim,), one number a category."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Unit vectors of shape (n, dim), sorted by category, and how many each category has: at least one."""

    vectors: NDArray[np.float32]
    sizes: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The category of each example, of shape (n,)."""
        return np.repeat(np.arange(self.sizes.size), self.sizes)

    @property
    def weights(self) -> Floats:
        """One weight an example: every category weighs the same; they sum to 1."""
        return np.repeat(1.0 / (self.sizes.size * self.sizes), self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prototype:
    """A soft maximum of the cosines to a category's examples: log(mean(exp(sharpness * cosine))) / sharpness."""

    vectors: NDArray[np.float32]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    sharpness: float
    counts: tuple[int, ...] = field(init=False)
    """`sizes`, as numbers."""

    def __post_init__(self) -> None:
        """Note what every request asks."""
        object.__setattr__(self, "counts", tuple(self.sizes.tolist()))

    def likenesses(self, vectors: NDArray[np.float32]) -> Floats:
        """Return shape (m, categories) for unit vectors of shape (m, dim)."""
        cosines = (vectors @ self.vectors.T).astype(np.float64)
        return _softest(cosines, self.starts, self.sizes, self.sharpness)

    def of(self, vector: NDArray[np.float32]) -> list[float]:
        """Return what `likenesses` does of one vector, in few steps: after an encoder ran, each is slow."""
        # Not a matrix product: OpenBLAS would wake other threads for it.
        cosines = np.vecdot(self.vectors, vector)
        nearest = np.maximum.reduceat(cosines, self.starts)
        near = np.exp((cosines - nearest.repeat(self.sizes)) * np.float32(self.sharpness))
        sums = np.add.reduceat(near, self.starts).tolist()
        return [
            top + math.log(total / size) / self.sharpness if total > 0.0 else math.nan
            for top, total, size in zip(nearest.tolist(), sums, self.counts, strict=True)
        ]


def prototypes(examples: Examples) -> Iterator[tuple[Head, HeldOut]]:
    """Yield a head for each sharpness, the softest first."""
    vectors, labels, sizes = examples.vectors, examples.labels, examples.sizes
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rows = np.arange(labels.size)
    cosines = (vectors @ vectors.T).astype(np.float64)
    apart = cosines[~np.eye(labels.size, dtype=bool)]
    spread = float(apart.std()) if apart.size else 0.0
    np.fill_diagonal(cosines, -np.inf)
    for unit in _SHARPNESS:
        sharpness = unit / (spread if spread > _SAME else 1.0)
        others = np.broadcast_to(sizes, (labels.size, sizes.size)).copy()
        others[rows, labels] -= 1
        own = _softest(cosines, starts, others, sharpness)
        strange = own.copy()
        strange[rows, labels] = np.nan
        head = Prototype(vectors=vectors, starts=starts, sizes=sizes, sharpness=sharpness)
        yield head, HeldOut(own=own, strange=strange, labels=labels)


def _softest(cosines: Floats, starts: NDArray[np.int64], sizes: NDArray[np.int64], sharpness: float) -> Floats:
    """Return the soft maximum of each category's columns; NaN where `sizes` says that there is none to compare with."""
    nearest = np.maximum.reduceat(cosines, starts, axis=1)
    widths = np.diff(starts, append=cosines.shape[1])
    there = sizes > 0
    near = np.exp(sharpness * (cosines - np.repeat(np.where(there, nearest, 0.0), widths, axis=1)))
    shares = np.add.reduceat(near, starts, axis=1) / np.maximum(sizes, 1)
    return np.asarray(nearest + np.log(shares, out=np.full_like(shares, np.nan), where=there) / sharpness)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Logistic:
    """Logits of a multinomial logistic regression on centred vectors; `slopes` has shape (dim, categories)."""

    slopes: Floats
    offsets: Floats

    def likenesses(self, vectors: NDArray[np.float32]) -> Floats:
        """Return shape (m, categories) for vectors of shape (m, dim)."""
        return np.asarray(vectors @ self.slopes + self.offsets)

    def of(self, vector: NDArray[np.float32]) -> list[float]:
        """Return the same of one vector of shape (dim,)."""
        found: list[float] = (vector @ self.slopes + self.offsets).tolist()
        return found


def logistics(examples: Examples) -> Iterator[tuple[Head, HeldOut]]:
    """Yield a head for each strength of regularisation, the strongest first.

    Held-out logits are of five folds; strange ones of a head that was trained without the category at all.
    """
    labels, weights, count = examples.labels, examples.weights, examples.sizes.size
    middle = weights @ examples.vectors
    centred = examples.vectors - middle
    size = float(np.sqrt(weights @ (centred**2).sum(axis=1))) or 1.0
    features = np.concatenate([centred / size, np.ones((labels.size, 1))], axis=1)
    # In this basis the bound on the curvature is diagonal, so that a step is a division.
    _, singular, basis = np.linalg.svd(np.sqrt(weights)[:, None] * features, full_matrices=False)
    turned = features @ basis.T
    fold = np.concatenate([np.arange(number) % _FOLDS for number in examples.sizes])
    for ridge in _RIDGES:
        problem = _Problem(features=turned, labels=labels, weights=weights, bend=0.5 * singular**2 + ridge, ridge=ridge)
        everything = np.ones(labels.size, dtype=bool)
        whole = problem.solve(everything, np.arange(count), np.zeros((turned.shape[1], count)))
        own = np.full((labels.size, count), np.nan)
        strange = own.copy()
        for number in range(_FOLDS):
            out = fold == number
            own[out] = turned[out] @ problem.solve(~out, np.arange(count), whole)
        for category in range(count):
            out, rest = labels == category, np.delete(np.arange(count), category)
            if rest.size:
                strange[np.ix_(out, rest)] = turned[out] @ problem.solve(~out, rest, whole[:, rest])
        slopes = basis.T @ whole
        head = Logistic(slopes=slopes[:-1] / size, offsets=slopes[-1] - middle @ slopes[:-1] / size)
        yield head, HeldOut(own=own, strange=strange, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Problem:
    """A weighted multinomial logistic regression with a ridge, in a basis where `bend` bounds its curvature.

    Böhning, "Multinomial logistic regression algorithm" (1992); leaving examples out only lowers the curvature.
    """

    features: Floats
    labels: NDArray[np.int64]
    weights: Floats
    bend: Floats
    ridge: float

    def solve(self, kept: NDArray[np.bool_], columns: NDArray[np.int64], start: Floats) -> Floats:
        """Return weights of shape (features, columns), from the kept examples, by accelerated steps from `start`."""
        features, weights = self.features[kept], self.weights[kept]
        right = (self.labels[kept][:, None] == columns).astype(np.float64)
        at = ahead = start
        pace = 1.0
        for _ in range(_STEPS):
            logits = features @ ahead
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            off = weights[:, None] * (odds / odds.sum(axis=1, keepdims=True) - right)
            after = ahead - (features.T @ off + self.ridge * ahead) / self.bend[:, None]
            moved = after - at
            if float(np.abs(moved).max()) < _STILL:
                return np.asarray(after)
            faster = (1.0 + (1.0 + 4.0 * pace * pace) ** 0.5) / 2.0
            ahead = after + (pace - 1.0) / faster * moved
            at, pace = after, faster
        return np.asarray(at)
