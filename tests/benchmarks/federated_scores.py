"""How well heads tell pairs apart: scores at a threshold and over all of them, with paired intervals by bootstrap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SCORES = ("f1", "f05", "precision", "recall", "auc", "pchr")
RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranked:
    """What one head says of the measured pairs: cosines, shape (n,), and the threshold that was chosen for it."""

    near: Floats
    threshold: float


def resamples(group: NDArray[np.int64], seed: int = 0, many: int = RESAMPLES) -> Floats:
    """Return how often each pair stands in each sample, shape (1 + many, n); the first is the data as they are.

    Whole groups are drawn, for pairs that share a question are not independent of each other.
    """
    names, where = np.unique(group, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=many)
    return np.concatenate([np.ones((1, len(group))), drawn[:, where].astype(np.float64)])


def scores(ranked: Ranked, right: NDArray[np.bool_], weights: Floats) -> dict[str, Floats]:
    """Return each score by sample, shape (samples,): at the threshold, and of the ranking as a whole.

    `auc` is the area under the ROC curve, `pchr` under precision over the hit rate from 0 to 1. Of equal cosines wrong
    pairs come first.
    """
    served = ranked.near >= ranked.threshold
    tp, fp = weights @ (served & right), weights @ (served & ~right)
    fn = weights @ (~served & right)
    order = np.lexsort((right, -ranked.near))
    mass, hits = weights[:, order], weights[:, order] * right[order]
    seen, found = np.cumsum(mass, axis=1), np.cumsum(hits, axis=1)
    wrong = mass - hits
    auc = (wrong * found).sum(axis=1) / np.maximum(hits.sum(axis=1) * wrong.sum(axis=1), 1)
    pchr = (mass * found / np.maximum(seen, 1)).sum(axis=1) / seen[:, -1]
    return {
        "f1": 2 * tp / np.maximum(2 * tp + fn + fp, 1),
        "f05": 1.25 * tp / np.maximum(1.25 * tp + 0.25 * fn + fp, 1),
        "precision": tp / np.maximum(tp + fp, 1),
        "recall": tp / np.maximum(tp + fn, 1),
        "auc": auc,
        "pchr": pchr,
    }


def mean_scores(many: Sequence[Ranked], right: NDArray[np.bool_], weights: Floats) -> dict[str, Floats]:
    """Return each score, a mean over heads (of seeds, or of clients), by sample."""
    found = [scores(one, right, weights) for one in many]
    return {name: np.mean([one[name] for one in found], axis=0) for name in SCORES}


def interval(samples: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval of what follows the first sample."""
    low, high = np.quantile(samples[1:], (0.025, 0.975))
    return float(low), float(high)


def difference(one: dict[str, Floats], other: dict[str, Floats]) -> dict[str, dict[str, object]]:
    """Return by how much `one` is above `other`, with 95 % intervals: both by the same samples."""
    return {
        name: {"by": float((one[name] - other[name])[0]), "interval": interval(one[name] - other[name])}
        for name in SCORES
    }
