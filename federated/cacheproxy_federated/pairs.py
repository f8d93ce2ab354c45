"""What one node learns from: labelled pairs of questions as vectors, and where layers are trained, as texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """`a` and `b` are the base encoder's unit vectors, float32 of shape (n, d), of the kept and the asked questions.

    `right`, shape (n,), says whether the kept answer is right for the question asked. `group`, shape (n,), is the
    connected component of a pair in the graph of questions: what is told apart within one is known by its labels alone.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    right: NDArray[np.bool_]
    category: tuple[str, ...]
    group: NDArray[np.int64]
    texts: tuple[tuple[str, str], ...] = ()
    """Both questions of each pair, or none at all: only the encoder's own layers are trained on them."""

    def __post_init__(self) -> None:
        """Raise ValueError for arrays that do not fit together or are not finite."""
        n = len(self.right)
        if self.a.ndim != 2 or self.a.shape != self.b.shape:
            raise ValueError(f"pairs need vectors of one shape (n, d), got {self.a.shape} and {self.b.shape}")
        if self.a.dtype != np.float32 or self.b.dtype != np.float32:
            raise ValueError(f"pairs need float32 vectors, got {self.a.dtype} and {self.b.dtype}")
        if self.right.shape != (n,) or self.group.shape != (n,) or len(self.a) != n or len(self.category) != n:
            raise ValueError(
                f"pairs need a label, a category and a group for each of {len(self.a)} vectors, "
                f"got {self.right.shape}, {len(self.category)} and {self.group.shape}"
            )
        if self.texts and len(self.texts) != n:
            raise ValueError(f"pairs need texts for all of {n} pairs, or for none, got {len(self.texts)}")
        if not (np.isfinite(self.a).all() and np.isfinite(self.b).all()):
            raise ValueError("pairs need finite vectors")

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.right)

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Pairs:
        """Return the pairs of some rows, by their indices or by a mask."""
        return Pairs(
            a=self.a[rows],
            b=self.b[rows],
            right=self.right[rows],
            category=tuple(np.array(self.category, dtype=object)[rows].tolist()),
            group=self.group[rows],
            texts=tuple(map(tuple, np.array(self.texts, dtype=object)[rows].tolist())) if self.texts else (),
        )
