"""Boosted trees as arrays: trained by scikit-learn, stored without pickle, evaluated by numpy alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_NAMES = ("feature", "threshold", "left", "right", "value", "roots")
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Walk:
    """The same nodes, laid out for walking all trees at once: each condition once, both children of a node in a row.

    A node goes by twice its number here: `children` has its right one there and its left one after that. `conditions`
    tells which of the conditions (`features` at or below `thresholds`) it asks for.
    """

    features: NDArray[np.intp]
    thresholds: NDArray[np.float32]
    conditions: NDArray[np.intp]
    children: NDArray[np.intp]
    values: NDArray[np.float32]
    roots: NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trees:
    """All nodes of all trees in one table. A leaf's children are itself, so that walking on stays there.

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
        walk = self._walk
        true = (rows.take(walk.features, axis=1) <= walk.thresholds).ravel().astype(np.intp)
        row = np.repeat(np.arange(len(rows)) * len(walk.features), len(walk.roots))
        at = np.tile(walk.roots, len(rows))
        for _ in range(self.depth):
            at = walk.children.take(at + true.take(row + walk.conditions.take(at)))
        values = walk.values.take(at).reshape(len(rows), len(walk.roots))
        total: NDArray[np.float64] = values.sum(axis=1, dtype=np.float64) + self.base
        return total

    @cached_property
    def _walk(self) -> _Walk:
        asked = np.stack([self.feature, self.threshold], axis=1, dtype=np.float64)
        conditions, which = np.unique(asked, axis=0, return_inverse=True)
        return _Walk(
            features=conditions[:, 0].astype(np.intp),
            thresholds=conditions[:, 1].astype(np.float32),
            conditions=np.repeat(which.ravel(), 2),
            children=2 * np.stack([self.right, self.left], axis=1, dtype=np.intp).ravel(),
            values=np.repeat(self.value, 2),
            roots=2 * self.roots.astype(np.intp),
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
        return trees


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
