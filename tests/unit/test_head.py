"""What a similarity head makes of vectors, and what it refuses to be."""

from __future__ import annotations

import numpy as np
import pytest

from cacheproxy.embed.head import Head, compressed
from tests.support.index_world import units

ROWS = units(300, dim=32)


def random_head(k: int = 32, d: int = 32, *, int8: bool = False) -> Head:
    matrix = np.random.default_rng(1).standard_normal((k, d)).astype(np.float32)
    return Head(matrix=matrix, int8=int8)


def test_the_identity_changes_nothing() -> None:
    assert np.allclose(Head.identity(32).project(ROWS), ROWS, atol=1e-6)


@pytest.mark.parametrize("int8", [False, True])
def test_what_it_makes_has_unit_norm_and_is_the_same_one_by_one(int8: bool) -> None:
    head = random_head(8, int8=int8)
    made = head.project(ROWS)
    assert made.shape == (300, 8)
    assert made.dtype == np.float32
    assert np.allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-6)
    for row, one in zip(ROWS[:20], made, strict=False):
        assert np.allclose(head.project(row), one, atol=1e-5)


def test_a_vector_that_maps_to_nothing_is_still_one() -> None:
    matrix = np.zeros((2, 4), dtype=np.float32)
    matrix[:, 0] = 1.0
    lost = Head(matrix=matrix).project(np.array([[0.0, 1.0, 0.0, 0.0]], dtype=np.float32))
    assert lost.tolist() == [[1.0, 0.0]]


def test_int8_says_what_codes_of_a_byte_say() -> None:
    head, plain = random_head(16, int8=True), random_head(16)
    made = head.project(ROWS)
    codes = made / np.abs(made).max(axis=1, keepdims=True) * 127
    assert np.allclose(codes, np.rint(codes), atol=1e-3)
    cosines = np.einsum("ij,ij->i", head.project(ROWS), plain.project(ROWS))
    assert cosines.min() > 0.999
    assert head.vector_bytes * 4 == plain.vector_bytes


def test_everything_that_a_projection_depends_on_is_in_the_digest() -> None:
    one, other = random_head(), random_head()
    assert one.digest == other.digest
    changed = one.matrix.copy()
    changed[3, 4] += 1e-6
    assert len({one.digest, Head(matrix=changed).digest, Head(matrix=one.matrix, int8=True).digest}) == 3


def test_principal_components_keep_what_vectors_of_few_dimensions_say() -> None:
    flat = units(200, dim=6) @ units(6, dim=32, seed=2)
    flat = (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)
    small = compressed(Head.identity(32), flat, 6, int8=False)
    assert np.allclose(small.project(flat) @ small.project(flat).T, flat @ flat.T, atol=1e-4)
    assert compressed(Head.identity(32), flat, 6, int8=False).digest == small.digest


@pytest.mark.parametrize("dim", [1, 33])
def test_more_components_than_there_are_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match="components must be 2 to 32"):
        compressed(Head.identity(32), ROWS, dim, int8=False)


def test_fewer_vectors_than_components_is_refused() -> None:
    with pytest.raises(ValueError, match="need at least as many vectors, got 5"):
        compressed(Head.identity(32), ROWS[:5], 6, int8=False)


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(4),
        np.eye(4, dtype=np.float32)[0],
        np.ones((5, 4), dtype=np.float32),
        np.ones((1, 4), dtype=np.float32),
        np.zeros((4, 4), dtype=np.float32),
        np.full((4, 4), np.nan, dtype=np.float32),
        np.full((4, 4), np.inf, dtype=np.float32),
    ],
    ids=["float64", "one row", "more out than in", "one out", "zero", "nan", "inf"],
)
def test_what_maps_nothing_soundly_is_no_head(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="head"):
        Head(matrix=matrix)
