"""What a proxy's own pairs say of a head: as many as a file holds, a part at a time."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy import examining
from cacheproxy.embed.head import Head, unit
from cacheproxy.examining import Seen, _Pairs
from cacheproxy.learn.pairfile import PairRows
from tests.support.heads import rotation

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANY, DIM = 20_000, 64


def rows() -> PairRows:
    random = np.random.default_rng(0)
    a, b = (unit(random.normal(size=(MANY, DIM)).astype(np.float32)) for _ in range(2))
    return PairRows(
        a=a,
        b=b,
        right=np.arange(MANY) % 2 == 0,
        category=("c",) * MANY,
        group=np.arange(MANY),
        held=np.arange(MANY) % 5 == 0,
        texts=None,
    )


def of(a: NDArray[np.float32], b: NDArray[np.float32]) -> _Pairs:
    return _Pairs(a=a, b=b, right=np.ones(len(a), dtype=np.bool_), group=np.arange(len(a)), category=())


@pytest.mark.parametrize("head", [None, rotation(DIM, 1)])
def test_similarities_of_parts_are_those_of_the_whole(head: Head | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given, seen = rows(), Seen(epoch="e", head=head)
    pairs = of(given.a, given.b)
    in_parts = seen.cosines(pairs)
    monkeypatch.setattr(examining, "_AT_ONCE", MANY)
    assert seen.cosines(pairs).tobytes() == in_parts.tobytes()
    assert seen.cosines(of(given.a[:0], given.b[:0])).shape == (0,)


def test_examining_many_pairs_copies_none_of_them() -> None:
    given, seen = rows(), Seen(epoch="e", head=rotation(DIM, 1))
    tracemalloc.start()
    try:
        examining._usual(given, seen)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (given.a.nbytes + given.b.nbytes) / 1.2, "10 MB of vectors; parts, and numbers of each pair"
