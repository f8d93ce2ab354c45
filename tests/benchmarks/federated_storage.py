"""What a vector takes under a head that makes it smaller, what that costs in scores, and how long a search takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.embed.head import LEVELS, Head, compressed
from cacheproxy.evaluate.progress import progress
from tests.benchmarks.federated_learning import similarities, threshold
from tests.benchmarks.federated_scores import Ranked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cacheproxy_federated.task import Pairs
    from numpy.typing import NDArray

    from tests.benchmarks.federated_data import Client

DIM = 64
SEARCHED = 10_000
_SEARCHES = 300
_BEST = 4


def smaller(head: Head, clients: Sequence[Client], dim: int = DIM, *, int8: bool) -> Head:
    """Return a head followed by the principal components of what the clients train on."""
    rows = np.concatenate([side for one in clients for side in (one.train.a, one.train.b)])
    return compressed(head, rows, dim, int8=int8)


def ranked(head: Head, clients: Sequence[Client], test: Pairs) -> Ranked:
    """Return what a head says of the measured pairs, with a threshold of its own from the clients' counts."""
    return Ranked(near=similarities(head, test), threshold=threshold(head, clients))


def search_times(head: Head) -> dict[str, dict[str, float]]:
    """Return the time of a flat search of 10,000 made-up vectors, and of projecting one, in milliseconds.

    As the proxy's index holds them: as float32. And as codes, which a search turns into float32 as it goes.
    """
    random = np.random.default_rng(0)
    plain = random.normal(size=(SEARCHED, head.dim_in)).astype(np.float32)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    small = head.project(plain)
    codes = np.rint(small / np.abs(small).max(axis=1, keepdims=True) * LEVELS).astype(np.int8)
    norms = np.linalg.norm(codes.astype(np.float32), axis=1)

    def best(near: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.argpartition(near, -_BEST)[-_BEST:]

    return _interleaved(
        {
            f"{head.dim_in} x float32": lambda one: best(plain @ one),
            f"{head.dim} x float32": lambda one: best(small @ head.project(one)),
            f"{head.dim} x int8": lambda one: best((codes.astype(np.float32) @ head.project(one)) / norms),
            "projecting the question alone": head.project,
        },
        plain[:_SEARCHES],
    )


def _interleaved(
    ways: dict[str, Callable[[NDArray[np.float32]], NDArray[np.generic]]], questions: NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    with progress("searching", len(questions)) as advance:
        for question in questions:
            for name, search in ways.items():
                began = time.perf_counter()
                search(question)
                times[name].append((time.perf_counter() - began) * 1000)
            advance(1)
    return {name: {f"p{q}": float(np.percentile(ms, q)) for q in (50, 90, 99)} for name, ms in times.items()}
