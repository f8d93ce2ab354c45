"""Heads by four ways of learning: none, each client for itself, federated, and all pairs in one place.

The averages are of Flower's definitions, in numpy, so that hundreds of rounds take minutes: no message is sent here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from cacheproxy_federated.task import Pairs, Training, chosen, counted, summed, trained, verify_from

from cacheproxy.embed.head import Head
from tests.benchmarks.federated_data import joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tests.benchmarks.federated_data import Client

    Matrix = NDArray[np.float32]

ROUNDS = 10
HOW = Training(epochs=2, batch=64, lr=1e-2)
"""Of clients, federated and alone."""
ALONE = 5
"""So many clients of a deal learn for themselves, too: with five seeds, 25."""
CENTRAL = Training(epochs=2, batch=256, lr=1e-3)
"""Of all pairs in one place: as many epochs in all, with the batch and the rate that are best there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """A head, and the threshold that the summed counts of held-back pairs give it."""

    head: Head
    threshold: float


def mean(updates: Sequence[Matrix], weights: Sequence[int]) -> Matrix:
    """Return the weighted mean: FedAvg."""
    made: Matrix = np.average(np.stack(updates), axis=0, weights=weights).astype(np.float32)
    return made


def base(clients: Sequence[Client]) -> Learnt:
    """Return the encoder as it is."""
    return _with_threshold(Head.identity(clients[0].train.a.shape[1]), clients)


def alone(clients: Sequence[Client], seed: int, rounds: int = ROUNDS, how: Training = HOW) -> list[Learnt]:
    """Return what clients learn for themselves, in as many epochs, with thresholds of their own held-back pairs."""
    return [
        _with_threshold(Head(matrix=_rounds(one.train, how, rounds, seed + at)), [one])
        for at, one in enumerate(clients[:ALONE])
        if _can_train(one.train)
    ]


def centralised(
    clients: Sequence[Client], seed: int, rounds: int = ROUNDS, how: Training = CENTRAL, *, told: bool = True
) -> Learnt:
    """Return what all pairs in one place teach, in as many epochs; `told` which are of one topic, or not."""
    return _with_threshold(Head(matrix=_rounds(joined(clients, told=told), how, rounds, seed)), clients)


def federated(
    clients: Sequence[Client],
    seed: int,
    *,
    rounds: int = ROUNDS,
    how: Training = HOW,
) -> Head:
    """Return what the clients teach each other's head in rounds. A client without both labels does not take part."""
    matrix = np.eye(clients[0].train.a.shape[1], dtype=np.float32)
    able = [at for at, one in enumerate(clients) if _can_train(one.train)]
    for number in range(rounds):
        updates = []
        for at in able:
            made = trained(matrix, clients[at].train, how, seed=seed * 1_000_000 + number * 1000 + at)
            updates.append(made - matrix)
        matrix = matrix + mean(updates, [len(clients[at].train) for at in able])
    return Head(matrix=matrix)


def _with_threshold(head: Head, clients: Sequence[Client]) -> Learnt:
    return Learnt(head=head, threshold=threshold(head, clients))


def threshold(head: Head, clients: Sequence[Client]) -> float:
    """Return the threshold of best F0.5, of the summed counts of all held-back pairs."""
    return chosen(summed(counted(head, one.held) for one in clients))["*"]


def thresholds(head: Head, clients: Sequence[Client]) -> tuple[float, float]:
    """Return that threshold, and where a verifier is asked from."""
    counts = summed(counted(head, one.held) for one in clients)
    return chosen(counts)["*"], verify_from(counts) or 0.0


def similarities(head: Head, pairs: Pairs) -> NDArray[np.float64]:
    """Return the cosine of each pair under a head, shape (n,)."""
    near: NDArray[np.float64] = (head.project(pairs.a) * head.project(pairs.b)).sum(axis=1).astype(np.float64)
    return near


def _rounds(pairs: Pairs, how: Training, rounds: int, seed: int) -> Matrix:
    matrix = np.eye(pairs.a.shape[1], dtype=np.float32)
    for number in range(rounds):
        matrix = trained(matrix, pairs, how, seed=seed * 1_000_000 + number)
    return matrix


def _can_train(pairs: Pairs) -> bool:
    return bool(pairs.right.any() and not pairs.right.all())
