"""The similarity head: a linear map on the encoder's vectors, learnt from pairs, which may also make them smaller.

A head says what counts as alike; the encoder below it stays as it is (algorithms.md, section 3). So the vectors that
are kept are the encoder's, and another head is adopted by one matrix product.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 127
"""Largest code of an int8 component: codes are symmetric."""
_SMALLEST = 1e-12
_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """`matrix` is float32 of shape (k, d), rows are output components; the bias that cosine ignores is left out.

    With `int8`, every component of a projected vector is one of 255 levels: what is compared is what int8 codes say.
    """

    matrix: NDArray[np.float32]
    int8: bool = False
    _wide: NDArray[np.float64] = field(init=False, repr=False)
    """The matrix, transposed. Sums are made in float64: so a vector comes out the same alone and among others, but for
    one in a million, and a snapshot of what was added one by one agrees with what is projected at the next start."""

    def __post_init__(self) -> None:
        """Raise ValueError for a matrix that maps nothing soundly: of other type or shape, not finite, or all zero."""
        matrix = self.matrix
        if matrix.dtype != np.float32 or matrix.ndim != 2 or not 2 <= matrix.shape[0] <= matrix.shape[1]:
            raise ValueError(f"a head is float32 of shape (k, d), 2 <= k <= d, got {matrix.dtype} {matrix.shape}")
        if not np.isfinite(matrix).all() or not np.abs(matrix).max() > _SMALLEST:
            raise ValueError("a head must be finite and not all zero")
        object.__setattr__(self, "_wide", np.ascontiguousarray(matrix.T, dtype=np.float64))

    @classmethod
    def identity(cls, dim: int) -> Head:
        """Return the head that changes nothing."""
        return cls(matrix=np.eye(dim, dtype=np.float32))

    @property
    def dim_in(self) -> int:
        """Length of the encoder's vectors."""
        return int(self.matrix.shape[1])

    @property
    def dim(self) -> int:
        """Length of the projected vectors."""
        return int(self.matrix.shape[0])

    @property
    def vector_bytes(self) -> int:
        """What one projected vector takes where it is stored."""
        return self.dim * (1 if self.int8 else 4)

    @property
    def digest(self) -> str:
        """SHA-256 of all that a projection depends on, in hexadecimal digits."""
        told = f"head/1:{self.dim}x{self.dim_in}:{'int8' if self.int8 else 'float32'}:".encode()
        return hashlib.sha256(told + np.ascontiguousarray(self.matrix, dtype="<f4").tobytes()).hexdigest()

    def project(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return unit vectors of shape (n, k) for vectors of shape (n, d), or (k,) for (d,).

        A vector that the head maps to nothing becomes the first axis: it is like no other but its kind.
        """
        if rows.ndim == 1:
            one: NDArray[np.float32] = self.project(rows[None])[0]
            return one
        made = [self._projected(rows[at : at + _CHUNK_ROWS]) for at in range(0, len(rows), _CHUNK_ROWS)]
        return np.concatenate(made) if made else np.empty((0, self.dim), dtype=np.float32)

    def _projected(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        mapped: NDArray[np.float64] = rows @ self._wide
        return unit(_coded(mapped).astype(np.float64) if self.int8 else mapped)


def unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return rows of shape (n, k) at unit norm; one without length becomes the first axis."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    lost = norms[:, 0] <= _SMALLEST
    made: NDArray[np.float32] = (rows / np.maximum(norms, _SMALLEST)).astype(np.float32)
    made[lost] = np.eye(1, rows.shape[1], dtype=np.float32)
    return made


def compressed(head: Head, rows: NDArray[np.float32], dim: int, *, int8: bool) -> Head:
    """Return a head followed by the `dim` principal components of what it makes of `rows`, shape (n, d).

    The components are not centred: what is compared are angles at the origin. Raises ValueError for fewer rows than
    components, or more components than the head has.
    """
    if not 2 <= dim <= head.dim:
        raise ValueError(f"components must be 2 to {head.dim}, got {dim}")
    if len(rows) < dim:
        raise ValueError(f"{dim} components need at least as many vectors, got {len(rows)}")
    made = head.project(rows).astype(np.float64)
    _, axes = np.linalg.eigh(made.T @ made)
    principal = axes[:, ::-1][:, :dim].T
    # An axis may point either way: the larger component first, so that equal rows make equal heads.
    signs = np.sign(principal[np.arange(dim), np.abs(principal).argmax(axis=1)])
    matrix = (principal * signs[:, None]) @ head.matrix.astype(np.float64)
    return Head(matrix=np.ascontiguousarray(matrix, dtype=np.float32), int8=int8)


def _coded(mapped: NDArray[np.float64]) -> NDArray[np.int8]:
    largest = np.maximum(np.abs(mapped).max(axis=1, keepdims=True), _SMALLEST)
    codes: NDArray[np.int8] = np.rint(mapped / largest * LEVELS).astype(np.int8)
    return codes
