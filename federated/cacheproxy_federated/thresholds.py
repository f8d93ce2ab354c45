"""Thresholds from counts: nodes tell how their held-back pairs fall at each, the server chooses from the sums.

A threshold from one node's few pairs scatters widely; sums of counts are as good as all pairs in one place, and tell
nothing of any one of them but in a category with a single pair.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from cacheproxy.embed.head import Head
    from cacheproxy_federated.pairs import Pairs

GRID: NDArray[np.float64] = np.arange(101) / 100
"""Candidate thresholds, cosines, shape (101,)."""
ALL = "*"
"""Stands for every category that has no threshold of its own (`cacheproxy.embed.headfile.ANY`)."""
Counts = dict[str, "NDArray[np.int64]"]
"""By category: tp, fp, fn, tn at each threshold of the grid, shape (101, 4)."""


def counted(head: Head, pairs: Pairs) -> Counts:
    """Return how pairs fall at each threshold: served at or above it."""
    near = (head.project(pairs.a) * head.project(pairs.b)).sum(axis=1)
    served = near.astype(np.float64)[:, None] >= GRID[None, :]
    category = np.array(pairs.category, dtype=object)
    return {
        name: _counts(served[category == name], pairs.right[category == name]) for name in sorted(set(pairs.category))
    }


def summed(many: Iterable[Counts]) -> Counts:
    """Return the sums by category, in the order of their names."""
    found: Counts = {}
    for counts in many:
        for name, one in counts.items():
            found[name] = found[name] + one if name in found else one.copy()
    return dict(sorted(found.items()))


def sound(counts: Counts, most: int) -> bool:
    """Whether counts can come from at most so many pairs: a node that lies must not outweigh the others.

    Counts are whole and not negative, a category's right and wrong pairs stay the same at every threshold, and a higher
    threshold never serves more.
    """
    return (
        all(one.shape == (len(GRID), 4) and one.dtype == np.int64 for one in counts.values())
        and all(((one >= 0) & (one <= most)).all() for one in counts.values())
        and all((one[:, [0, 1]] + one[:, [2, 3]] == one[0, [0, 1]] + one[0, [2, 3]]).all() for one in counts.values())
        and all((np.diff(one[:, :2], axis=0) <= 0).all() for one in counts.values())
        and sum(int(one[0].sum()) for one in counts.values()) <= most
    )


def chosen(counts: Counts, beta: float = 0.5, least: int = 40) -> dict[str, float]:
    """Return the threshold of best F-beta: of all pairs as `*`, and of each category with enough of them.

    Enough are `least`, right and wrong ones among them. Of equals the higher one; 1.0 where no pair is right, for then
    nothing should be served.
    """
    own = {
        name: _best(one, beta)
        for name, one in counts.items()
        if name != ALL and one[0].sum() >= least and all(_labels(one))
    }
    return {ALL: _best(_total(counts), beta), **own}


def verify_from(counts: Counts, share: float = 0.98) -> float | None:
    """Return the highest threshold at which this share of all right pairs is served; None without right pairs.

    Also None where not even 0 serves so many: then no threshold is low enough to ask a verifier from.
    """
    total = _total(counts)
    right, _ = _labels(total)
    kept = np.flatnonzero(total[:, 0] >= share * right)
    return float(GRID[kept[-1]]) if right and kept.size else None


def verified_from(many: Sequence[Counts]) -> float | None:
    """Return the median over nodes of where verifying begins for each, weighted by right pairs; of two, the lower one.

    One node that lies cannot move it past an honest one's. None where the median node has nowhere to begin.
    """
    found = sorted(
        (-1.0 if (begins := verify_from(counts)) is None else begins, right)
        for counts in many
        if (right := _labels(_total(counts))[0])
    )
    half, seen = sum(right for _, right in found) / 2, 0
    for begins, right in found:
        seen += right
        if seen >= half:
            return begins if begins >= 0 else None
    return None


def shared(many: Sequence[Counts], least: int) -> Counts:
    """Return the sums by category, in which one that fewer than `least` nodes have counts without its name."""
    nodes = Counter(name for counts in many for name in counts)
    return summed(
        {name if nodes[name] >= least else ALL: table} for counts in many for name, table in sorted(counts.items())
    )


def scored(counts: Counts, threshold: float) -> dict[str, float]:
    """Return precision, recall, F1 and F0.5 of all pairs at the grid's next threshold; 0 where one is undefined."""
    tp, fp, fn, _ = (int(one) for one in _total(counts)[min(int(np.searchsorted(GRID, threshold)), len(GRID) - 1)])
    return {
        "precision": tp / max(tp + fp, 1),
        "recall": tp / max(tp + fn, 1),
        "f1": 2 * tp / max(2 * tp + fn + fp, 1),
        "f05": 1.25 * tp / max(1.25 * tp + 0.25 * fn + fp, 1),
    }


def _counts(served: NDArray[np.bool_], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    label = right[:, None]
    fallen = (served & label, served & ~label, ~served & label, ~served & ~label)
    return np.stack([one.sum(axis=0) for one in fallen], axis=1).astype(np.int64)


def _total(counts: Counts) -> NDArray[np.int64]:
    total: NDArray[np.int64] = sum(counts.values(), start=np.zeros((len(GRID), 4), dtype=np.int64))
    return total


def _labels(one: NDArray[np.int64]) -> tuple[int, int]:
    """Return how many right and wrong pairs there are."""
    tp, fp, fn, tn = (int(count) for count in one[0])
    return tp + fn, fp + tn


def _best(one: NDArray[np.int64], beta: float) -> float:
    tp, fp, fn = (one[:, at].astype(np.float64) for at in range(3))
    above = (1 + beta**2) * tp
    scores = above / np.maximum(above + beta**2 * fn + fp, 1)
    return float(GRID[np.flatnonzero(scores == scores.max())[-1]])
