"""Vectors that stand for questions: clusters around random directions, and strangers near none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIM = 64


class Clusters:
    """Draws unit vectors. `lift` moves all of them towards one direction, as encoders whose cosines are all high do."""

    def __init__(self, *names: str, seed: int = 0, lift: float = 0.0) -> None:
        self._rng = np.random.default_rng(seed)
        self._common = self._directions(1)[0] * lift
        self._centres = dict(zip(names, self._directions(len(names)), strict=True))

    def near(self, name: str, count: int, spread: float = 1.0) -> NDArray[np.float32]:
        """Vectors of one cluster, of shape (count, DIM): about 1 / (1 + spread²) is the cosine of two of them."""
        return self._unit(self._common + self._centres[name] + spread * self._directions(count))

    def strangers(self, count: int) -> NDArray[np.float32]:
        return self._unit(self._common + self._directions(count))

    def between(self, one: str, other: str, share: float = 0.5) -> NDArray[np.float32]:
        """A vector on the way from one cluster's middle (share 0) to another's (share 1)."""
        point = self._common + (1 - share) * self._centres[one] + share * self._centres[other]
        return self._unit(point[None, :]).reshape(DIM)

    def _directions(self, count: int) -> NDArray[np.float64]:
        drawn = self._rng.normal(size=(count, DIM))
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))

    @staticmethod
    def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
