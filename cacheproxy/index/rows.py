"""How vectors lie in memory: as they came, or as int8 codes of a quarter of the size."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 127
"""Largest code: codes are symmetric."""
_MAPPED_BYTES = 256 * 1024


class Exact:
    """Vectors of `dim` float32 values, kept as they are."""

    def __init__(self, dim: int) -> None:
        self.dtype = np.dtype((np.float32, (dim,)))

    def kept(self, rows: NDArray[np.float32]) -> NDArray[Any]:
        """Return what is kept of unit vectors, shape (n, dim)."""
        return rows

    def vectors(self, kept: NDArray[Any]) -> NDArray[np.float32]:
        """Return the unit vectors that are compared, shape (n, dim)."""
        return kept

    def cosines(self, kept: NDArray[Any], vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of each with a unit vector, shape (n,)."""
        # Not a matrix product: OpenBLAS would spread it over threads, and on busy cores wait milliseconds for them.
        cosines: NDArray[np.float32] = np.vecdot(kept, vector)
        return cosines


class Coded:
    """Vectors of `dim` int8 codes; the largest component of each has the largest code, and a scale makes it unit again.

    A component is off by half a level at most, so a vector by no more than `max|x| * sqrt(dim) / 254`, and its cosine
    with any other one by no more than a hundredth over that (`worst_error`). Coding what was coded changes nothing.
    """

    def __init__(self, dim: int) -> None:
        self.dtype = np.dtype([("codes", np.int8, (dim,)), ("scale", np.float32)])

    def kept(self, rows: NDArray[np.float32]) -> NDArray[Any]:
        """Return what is kept of unit vectors, shape (n,): the same for each alone and among others."""
        largest = np.abs(rows).max(axis=1, keepdims=True)
        made = np.empty(len(rows), dtype=self.dtype)
        made["codes"] = np.rint(rows * (np.float32(LEVELS) / largest))
        wide = made["codes"].astype(np.float64)
        made["scale"] = 1.0 / np.sqrt(np.vecdot(wide, wide))
        return made

    def vectors(self, kept: NDArray[Any]) -> NDArray[np.float32]:
        """Return the unit vectors that are compared, shape (n, dim)."""
        made: NDArray[np.float32] = kept["codes"].astype(np.float32) * kept["scale"][:, None]
        return made

    def cosines(self, kept: NDArray[Any], vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of each with a unit vector, shape (n,)."""
        cosines: NDArray[np.float32] = np.vecdot(kept["codes"].astype(np.float32), vector) * kept["scale"]
        return cosines


Form = Exact | Coded


def worst_error(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far the cosine of each row's code with any unit vector may be from the row's own, shape (n,)."""
    bound: NDArray[np.float32] = 1.01 * np.abs(rows).max(axis=1) * np.sqrt(rows.shape[1]) / (2 * LEVELS)
    return bound


def mapped(size_bytes: int) -> bool:
    """Whether an array of this size is a mapping of its own, of which only what is used takes memory."""
    return size_bytes >= _MAPPED_BYTES


def room(rows: int, form: Form) -> NDArray[Any]:
    """Return room for vectors; a large one is a mapping of its own, which goes back to the system when it is freed."""
    size = rows * form.dtype.itemsize
    if not mapped(size):
        return np.empty(rows, dtype=form.dtype)
    return np.frombuffer(mmap.mmap(-1, size), dtype=form.dtype, count=rows)
