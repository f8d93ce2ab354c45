"""Counts under differential privacy: what a node sends of its held-back pairs then, and a threshold from the sums.

A node's pairs fall into bins of similarity, right and wrong ones apart, each pair into one: so few numbers, that are
summed over few bins, need least noise. A node counts a bounded number of pairs; the Euclidean distance of two such
histograms, of whatever data, is at most `APART` times that number, which is what `privacy.composed` reckons with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cacheproxy.embed.head import Head
    from cacheproxy_federated.pairs import Pairs

EDGES: NDArray[np.float64] = np.arange(21) / 20
"""Candidate thresholds, cosines; what lies below the first falls into a bin of its own."""
BINS = len(EDGES) + 1
_FAR = 6.0
"""Noise beyond so many standard deviations does not happen: a bin further off than that is a lie, and is cut there."""
_DOUBT = 2.0
"""Standard deviations by which the sums are taken for worse than they look."""
_LEAST_F = 0.5
"""A threshold that promises less than this for certain is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The threshold of best F0.5 that the sums promise for certain, 1.0 where there is none, and scores there."""

    threshold: float
    metrics: dict[str, float]


def histogram(head: Head, pairs: Pairs, most: int) -> NDArray[np.int64]:
    """Return how many right and wrong pairs lie in each bin, shape (2, BINS), of the first `most` pairs."""
    near = (head.project(pairs.a[:most]) * head.project(pairs.b[:most])).sum(axis=1).astype(np.float64)
    at = np.searchsorted(EDGES, near, side="right")
    right = pairs.right[:most]
    return np.stack([np.bincount(at[label], minlength=BINS) for label in (right, ~right)]).astype(np.int64)


def noised(counts: NDArray[np.int64], deviation: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Return whole counts with Gaussian noise of this standard deviation in every bin; many come out negative.

    Rounding what is noised tells nothing more. The generator must be seeded from the operating system.
    """
    return np.rint(counts + random.normal(0.0, deviation, counts.shape)).astype(np.int64)


def bounded(counts: NDArray[np.int64], most: int, deviation: float) -> NDArray[np.float64]:
    """Return counts of which no bin is further off than noise and `most` pairs can be."""
    far = _FAR * deviation
    return np.clip(counts.astype(np.float64), -far, most + far)


def found(many: Sequence[NDArray[np.float64]], deviation: float) -> Found:
    """Return the threshold from the noisy counts of many nodes, each with noise of this standard deviation.

    Sums are made to fall with the threshold, as sums of true counts do, and each is taken for worse than it looks by
    two standard deviations of the noise in it. So a few nodes' counts, which are nearly all noise, make no threshold:
    then nothing is served.
    """
    total = np.sum(many, axis=0)
    served = _falling(np.cumsum(total[:, ::-1], axis=1)[:, ::-1])
    right, wrong = served[0, 0], served[1, 0]
    tp, fp = served[:, 1:]
    above = np.arange(len(EDGES), 0, -1)
    doubt = _DOUBT * deviation * np.sqrt(len(many) * above)
    sure, risked = np.maximum(tp - doubt, 0.0), fp + doubt
    f = 1.25 * sure / np.maximum(1.25 * sure + 0.25 * np.maximum(right - sure, 0.0) + risked, 1.0)
    best = int(np.flatnonzero(f == f.max())[-1])
    if f[best] < _LEAST_F:
        return Found(threshold=1.0, metrics={})
    here, off = tp[best], fp[best]
    missed = max(right - here, 0.0)
    return Found(
        threshold=float(EDGES[best]),
        metrics={
            "precision": float(here / max(here + off, 1.0)),
            "recall": float(here / max(right, 1.0)),
            "f1": float(2 * here / max(2 * here + missed + off, 1.0)),
            "f05": float(1.25 * here / max(1.25 * here + 0.25 * missed + off, 1.0)),
            "held_pairs": float(right + wrong),
        },
    )


def _falling(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums that fall along each row and are not negative: the middle of the nearest ones from either side."""
    above = np.maximum.accumulate(sums[:, ::-1], axis=1)[:, ::-1]
    below = np.minimum.accumulate(sums, axis=1)
    made: NDArray[np.float64] = np.maximum((above + below) / 2, 0.0)
    return made
