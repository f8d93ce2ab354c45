"""What a node and the server compute, and no more: no Flower, no file, no clock. The same input makes the same bytes.

`trained` is one client's round on a head; the counts of its held-back pairs make thresholds (`thresholds`).
"""

from __future__ import annotations

import hashlib
import math
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch

from cacheproxy_federated.losses import contrastive, kindred, ranking
from cacheproxy_federated.pairs import Pairs
from cacheproxy_federated.thresholds import GRID, Counts, chosen, counted, scored, sound, summed, verify_from

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = [
    "GRID",
    "Counts",
    "Pairs",
    "Training",
    "chosen",
    "counted",
    "scored",
    "sound",
    "summed",
    "trained",
    "verify_from",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a round is trained. The defaults were chosen on data of which no figure is reported (docs/benchmarks.md)."""

    epochs: int = 2
    batch: int = 64
    lr: float = 1e-2
    margin: float = 0.5
    """Cosine distance up to which a wrong pair is pushed apart."""
    scale: float = 20.0
    """What cosines are multiplied by before they are ranked."""
    proximal: float = 0.0
    """FedProx's mu: how strongly a round is held to the head that it started from; 0 is FedAvg."""

    def __post_init__(self) -> None:
        """Raise ValueError that names a setting out of range."""
        if self.epochs < 1 or self.batch < 2:
            raise ValueError(f"training needs at least 1 epoch of batches of 2, got {self.epochs} of {self.batch}")
        for name, value in (("lr", self.lr), ("scale", self.scale)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"training needs a {name} above 0, got {value}")
        for name, value in (("margin", self.margin), ("proximal", self.proximal)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"training needs a {name} of 0 or more, got {value}")


def trained(matrix: NDArray[np.float32], pairs: Pairs, how: Training, seed: int) -> NDArray[np.float32]:
    """Return the matrix, shape (k, d), after one client's round on its pairs; the one given stays as it is.

    Contrastive steps on all pairs alternate with ranking steps on the right ones, by Adam, whose state starts anew each
    round. The order of the pairs does not matter, and the seed fixes all else. Raises ValueError for a matrix that does
    not fit the pairs, and for pairs without both labels: a node that knows only right or only wrong answers cannot tell
    them apart, and should not take part in the round.
    """
    right = int(pairs.right.sum())
    if not 0 < right < len(pairs):
        raise ValueError(f"training needs right and wrong pairs, got {right} right and {len(pairs) - right} wrong")
    if matrix.dtype != np.float32 or matrix.ndim != 2 or matrix.shape[1] != pairs.a.shape[1]:
        raise ValueError(
            f"training needs a float32 matrix of shape (k, {pairs.a.shape[1]}), got {matrix.dtype} {matrix.shape}"
        )
    if not np.isfinite(matrix).all():
        raise ValueError("training needs a finite matrix; go on from the last sound head")
    pairs = pairs.at(order(pairs))
    a, b = torch.from_numpy(pairs.a), torch.from_numpy(pairs.b)
    label, group = torch.from_numpy(pairs.right), torch.from_numpy(pairs.group)
    start = torch.from_numpy(matrix.copy())
    head = start.clone().requires_grad_()
    random = torch.Generator().manual_seed(seed)
    with one_thread():
        adam = torch.optim.Adam([head], lr=how.lr)
        for rows, ranks in steps(label, how, random):
            loss = (
                ranking(a[rows] @ head.T, b[rows] @ head.T, kindred(a[rows], b[rows], group[rows]), how.scale)
                if ranks
                else contrastive(a[rows] @ head.T, b[rows] @ head.T, label[rows], how.margin)
            )
            if how.proximal:
                loss = loss + how.proximal / 2 * (head - start).square().sum()
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
            adam.step()
    found: NDArray[np.float32] = head.detach().numpy().copy()
    return found


def steps(label: torch.Tensor, how: Training, random: torch.Generator) -> Iterator[tuple[torch.Tensor, bool]]:
    """Yield the rows of each step, and whether it ranks. A batch of one is left out of ranking: it has no negatives."""
    right = torch.nonzero(label)[:, 0]
    for _ in range(how.epochs):
        every = torch.split(torch.randperm(len(label), generator=random), how.batch)
        pulled = torch.split(right[torch.randperm(len(right), generator=random)], how.batch)
        for rows, duplicates in zip_longest(every, pulled):
            if rows is not None:
                yield rows, False
            if duplicates is not None and len(duplicates) > 1:
                yield duplicates, True


def order(pairs: Pairs) -> NDArray[np.int64]:
    """Return an order of the pairs that does not depend on the one they came in: by a digest of each."""
    digests = [
        hashlib.sha256(a.tobytes() + b.tobytes() + bytes([int(right)])).digest()
        for a, b, right in zip(pairs.a, pairs.b, pairs.right, strict=True)
    ]
    return np.array(sorted(range(len(digests)), key=lambda at: (digests[at], int(pairs.group[at]))), dtype=np.int64)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch sum in one order: on one thread, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
