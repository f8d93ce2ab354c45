"""Boosted trees as arrays: trained by scikit-learn, stored without pickle, evaluated by numpy alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_NAMES = ("feature", "threshold", "left", "right", "value", "roots")
_ROWS_AT_ONCE = 64
_MOST_LEAVES = 64
"""Of one tree: each has a bit."""
_ANY_LEAF = ~np.uint64(0)
_FRACTION_BITS, _EXPONENT_BIAS = 52, 1023
"""Of a float64: the exponent of a power of two is the place of its bit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ruled:
    """The same trees by the leaves that each condition rules out: read from one end to the other, not walked.

    A condition that does not hold, so that its node is left to the right, rules out the leaves to its left; a row comes
    to the first leaf that none rules out (QuickScorer, Lucchese et al., 2015). Tables are of shape (conditions of a
    tree, trees); small trees are filled up with conditions that always hold. Walking jumps through tables that an
    encoder has just driven out of the caches, one memory access after the other.
    """

    features: NDArray[np.intp]
    thresholds: NDArray[np.float32]
    leaves: NDArray[np.uint64]
    """A bit for each leaf that is still possible where the condition does not hold, the leftmost one's lowest."""
    first: NDArray[np.int64]
    """Where in `values` each tree's leaves begin."""
    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trees:
    """All nodes of all trees in one table. A leaf's children are itself.

    A row goes left where its feature is at or below the threshold. `feature`, `left`, `right` and `roots` are int32,
    `threshold` and `value` float32; `depth` is the longest walk. Without slots, for the property that is kept.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float32]
    roots: NDArray[np.int32]
    depth: int
    base: float

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the log-odds of each row of shape (n, features)."""
        parts = [rows[at : at + _ROWS_AT_ONCE] for at in range(0, max(len(rows), 1), _ROWS_AT_ONCE)]
        return np.concatenate([self._logits(part) for part in parts]) if len(parts) > 1 else self._logits(rows)

    def _logits(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        ruled = self._ruled
        holds = rows.take(ruled.features, axis=1) <= ruled.thresholds
        possible = np.bitwise_and.reduce(np.where(holds, _ANY_LEAF, ruled.leaves), axis=1)
        lowest = (possible & -possible).astype(np.float64)
        leaf = (lowest.view(np.int64) >> _FRACTION_BITS) - _EXPONENT_BIAS
        total: NDArray[np.float64] = ruled.values.take(ruled.first + leaf).sum(axis=1, dtype=np.float64) + self.base
        return total

    @cached_property
    def _ruled(self) -> _Ruled:
        nodes = list(zip(*(getattr(self, name).tolist() for name in _NAMES[:5]), strict=True))
        conditions = list[list[tuple[int, float, int]]]()
        values, first = list[float](), list[int]()
        for root in self.roots.tolist():
            found, leaves = list[tuple[int, float, int]](), list[float]()
            _follow(nodes, root, self.depth, found, leaves)
            conditions.append(found)
            first.append(len(values))
            values += leaves
        most = max(1, *map(len, conditions))
        filled = [found + [_HOLDS] * (most - len(found)) for found in conditions]
        features, thresholds, ruled_out = (
            np.array([[one[part] for one in found] for found in filled], dtype=kind).reshape(-1, most).T.copy()
            for part, kind in enumerate((np.intp, np.float32, np.uint64))
        )
        return _Ruled(
            features=features,
            thresholds=thresholds,
            leaves=~ruled_out,
            first=np.array(first, dtype=np.int64),
            values=np.array(values, dtype=np.float32),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `from_arrays` takes."""
        return {name: getattr(self, name) for name in _NAMES} | {
            "shape": np.array([self.depth, self.base], dtype=np.float64)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], features: int) -> Trees:
        """Return the trees of an artefact over so many features. Raises ConfigError for what cannot be walked."""
        try:
            depth, base = arrays["shape"]
            trees = cls(**{name: arrays[name] for name in _NAMES}, depth=int(depth), base=float(base))
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise ConfigError("the trees of the verifier are not whole; train or install it again") from exc
        nodes = trees.value.size
        shaped = all(
            one.shape == (nodes,) and one.dtype == kind
            for one, kind in (
                (trees.feature, np.int32),
                (trees.threshold, np.float32),
                (trees.left, np.int32),
                (trees.right, np.int32),
                (trees.value, np.float32),
            )
        )
        inside = all(
            bool(((one >= 0) & (one < bound)).all())
            for one, bound in (
                (trees.feature, features),
                (trees.left, nodes),
                (trees.right, nodes),
                (trees.roots, nodes),
            )
        )
        told = np.isfinite(trees.value).all() and math.isfinite(trees.base) and not np.isnan(trees.threshold).any()
        rooted = trees.roots.ndim == 1 and trees.roots.dtype == np.int32
        if not (shaped and rooted and inside and told and 0 <= trees.depth <= 64):
            raise ConfigError("the trees of the verifier point nowhere; train or install it again")
        trees._ruled  # noqa: B018  # made now: what cannot be is told before anything is served
        return trees


_HOLDS = (0, math.inf, 0)
"""A condition that every row meets."""


def _follow(
    nodes: Sequence[tuple[int, float, int, int, float]],
    node: int,
    depth: int,
    conditions: list[tuple[int, float, int]],
    leaves: list[float],
) -> None:
    """Add what is at and below a node: its conditions with the leaves that each rules out, and the leaves' values.

    Raises ConfigError where that are too many, as in a circle.
    """
    feature, threshold, left, right, value = nodes[node]
    if not depth or left == right == node:
        leaves.append(value)
        if len(leaves) > _MOST_LEAVES:
            raise ConfigError("a tree of the verifier has too many leaves; train or install it again")
        return
    first = len(leaves)
    _follow(nodes, left, depth - 1, conditions, leaves)
    conditions.append((feature, threshold, (1 << len(leaves)) - (1 << first)))
    _follow(nodes, right, depth - 1, conditions, leaves)


def of_sklearn(model: Any) -> Trees:
    """Return the trees of a fitted HistGradientBoostingClassifier of two classes, without missing values."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in _NAMES}
    start = depth = 0
    for (predictor,) in model._predictors:
        nodes = predictor.nodes
        own = np.arange(len(nodes), dtype=np.int32)
        leaf = nodes["is_leaf"].astype(bool)
        parts["feature"].append(np.where(leaf, 0, nodes["feature_idx"]).astype(np.int32))
        parts["threshold"].append(np.where(leaf, 0.0, _rounded(nodes["num_threshold"])).astype(np.float32))
        parts["left"].append((np.where(leaf, own, nodes["left"]) + start).astype(np.int32))
        parts["right"].append((np.where(leaf, own, nodes["right"]) + start).astype(np.int32))
        parts["value"].append(np.where(leaf, nodes["value"], 0.0).astype(np.float32))
        parts["roots"].append(np.array([start], dtype=np.int32))
        depth = max(depth, int(nodes["depth"].max()))
        start += len(nodes)
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return Trees(**joined, depth=depth, base=float(np.ravel(model._baseline_prediction)[0]))


def _rounded(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round down, so that a float32 feature goes the way that it went in training."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)
