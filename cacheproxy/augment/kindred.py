"""Kindred: what the gains of other categories tell of one, and how much its own tries weigh against that. Pure.

Empirical Bayes with two levels. What a category gains, part by part of the scores, is what categories gain on average
and a deviation of its own; what code expects counts as one category among them. How far categories deviate is
estimated from their tries by the method of moments (DerSimonian and Laird, 1986) and bounded: the further they are
apart, the less others tell, and the sooner a category's own tries decide. Neighbouring parts are alike, so a try tells
of them, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_SPREAD = 0.045**2
"""Variance of gains between categories before there are two; twice that is how far code may be off."""
_BOUNDS = (0.04**2, 0.4**2)
_SURE = 0.12**2
"""Error (a variance) of what a category gained, at which it counts a quarter for the spread."""
_LEVEL = 0.5
"""Share of a deviation that is of all scores alike."""
_REACH = 3.0
"""Parts of the scores over which the rest of it fades to 1/e."""
_NONE = 1e-6
"""Precision that is no try at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the tries of a category say by themselves: gains of shape (parts,), and their precisions (1 / variance).

    Where a part was not tried both ways its precision is 0, and its gain is any finite number.
    """

    gains: Floats
    precisions: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Gains that are expected, of shape (parts,), and their variances."""

    gains: Floats
    variances: Floats


class Kindred:
    """What categories gained, as `expected` by code and as `seen`."""

    def __init__(self, expected: Floats, seen: Sequence[Evidence]) -> None:
        parts = len(expected)
        self._expected = expected
        self._gains = np.array([one.gains for one in seen]).reshape(len(seen), parts)
        self._precisions = np.array([one.precisions for one in seen]).reshape(len(seen), parts)
        self.spread = spread(self._gains - expected, self._precisions)
        """Variance of gains between categories."""
        apart = np.abs(np.subtract.outer(np.arange(parts), np.arange(parts)))
        self._own = self.spread * (_LEVEL + (1.0 - _LEVEL) * np.exp(-apart / _REACH))
        # What each tells of all: the inverse of its deviation and its error together, in a form that takes 0 tries.
        diagonal = self._precisions[:, :, None] * np.eye(parts)
        self._tell = np.linalg.solve(np.eye(parts) + diagonal @ self._own, diagonal)
        self._told = np.einsum("cij,cj->ci", self._tell, self._gains - expected)

    def estimate(self, at: int | None) -> Estimate:
        """Return what the category that was seen as number `at` gains; for None, one that was never tried."""
        tell, told = self._tell.sum(axis=0), self._told.sum(axis=0)
        if at is not None:
            tell, told = tell - self._tell[at], told - self._told[at]
        average = np.linalg.inv(np.linalg.inv(self._own) + tell)
        gains, variance = self._expected + average @ told, average + self._own
        if at is not None:
            precision = np.diag(self._precisions[at])
            variance = np.linalg.inv(np.linalg.inv(variance) + precision)
            gains = gains + variance @ precision @ (self._gains[at] - gains)
        return Estimate(gains=gains, variances=np.diag(variance))


def spread(deviations: Floats, precisions: Floats) -> float:
    """Return the variance of gains between categories, by how far each is from what code expects on the whole.

    Both are of shape (categories, parts). One that was tried little counts little.
    """
    weight = precisions.sum(axis=1)
    tried = weight > _NONE
    error = 1.0 / weight[tried]
    mean = (deviations * precisions).sum(axis=1)[tried] * error
    counts = np.append((_SURE / (_SURE + error)) ** 2, 1.0)  # the last one is what code expects
    off, errors = np.append(mean, 0.0), np.append(error, 0.0)
    total = float(counts.sum())
    centre = float(counts @ off) / total
    scatter = float(counts @ (off - centre) ** 2 - (counts * (1.0 - counts / total)) @ errors)
    size = total - float(counts @ counts) / total
    low, high = _BOUNDS
    return min(high, max(low, (_SPREAD + scatter) / (1.0 + size)))
