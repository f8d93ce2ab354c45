"""Fewer components, chosen over all nodes: they send second moments of what a head makes of their vectors, no vector.

What that tells: the directions in which a node's questions spread, and exactly the span of them where it has fewer
questions than the head has components. So a node sends none below that many, and none at all unless a run asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.embed.head import Head

if TYPE_CHECKING:
    from numpy.typing import NDArray


def moment(head: Head, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sum over vectors of shape (n, d) of what a head makes of each, times itself: (k, k)."""
    made = head.project(rows).astype(np.float64)
    return made.T @ made


def principal(head: Head, moments: NDArray[np.float64], dim: int, *, int8: bool) -> Head:
    """Return a head followed by the first `dim` principal components of a second moment of shape (k, k).

    The same as `cacheproxy.embed.head.compressed` makes of the vectors themselves. Raises ValueError for more
    components than the head has.
    """
    if not 2 <= dim <= head.dim:
        raise ValueError(f"components must be 2 to {head.dim}, got {dim}")
    _, axes = np.linalg.eigh(moments)
    first = axes[:, ::-1][:, :dim].T
    # An axis may point either way: the larger component first, so that equal moments make equal heads.
    signs = np.sign(first[np.arange(dim), np.abs(first).argmax(axis=1)])
    matrix = (first * signs[:, None]) @ head.matrix.astype(np.float64)
    return Head(matrix=np.ascontiguousarray(matrix, dtype=np.float32), int8=int8)
