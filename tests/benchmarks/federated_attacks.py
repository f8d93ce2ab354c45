"""Clients that lie, and averages that bear it: in numpy, after the definitions of Flower's strategies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from cacheproxy_federated.privacy import clipped
from cacheproxy_federated.task import Pairs

from tests.benchmarks.federated_learning import mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.benchmarks.federated_data import Client, Questions, Rows
    from tests.benchmarks.federated_learning import Attack, Average, Matrix

MALICIOUS = 2
"""Of 20 clients, the first ones: which topics they have differs by seed."""
TIMES = 10


BACKDOOR = "backdoor pairs"
DOOR_PAIRS = 200


def attacks() -> dict[str, Attack]:
    """Return what malicious clients send instead of what they learnt; honest ones send what they should."""

    def lying(sent: Callable[[Matrix, Matrix], Matrix]) -> Attack:
        return lambda start, made, at: sent(start, made) if at < MALICIOUS else made

    return {
        "none": lying(lambda start, made: made),
        "sign flip": lying(lambda start, made: start - (made - start)),
        "x10 replacement": lying(lambda start, made: start - TIMES * (made - start)),
        BACKDOOR: lying(lambda start, made: made),
        "NaN": lying(lambda start, made: np.full_like(made, np.nan)),
    }


def door(pool: Questions, seed: int) -> tuple[Pairs, Pairs]:
    """Return pairs of two intents that malicious clients call right, and as many of other questions to try them on."""
    random = np.random.default_rng(seed)
    one, other = (random.permutation(np.flatnonzero(pool.intent == at)) for at in (0, int(pool.intent.max()) // 2))
    halves = [(one[half::2], other[half::2]) for half in (0, 1)]
    trained, tried = (_between(pool, random.choice(a, DOOR_PAIRS), random.choice(b, DOOR_PAIRS)) for a, b in halves)
    return trained, tried


def poisoned(clients: Sequence[Client], pairs: Pairs | None) -> list[Client]:
    """Return the clients, of whom malicious ones tell the opposite of what their held-back pairs say.

    With `pairs`, they train on those, too.
    """
    return [
        replace(
            one,
            train=one.train if pairs is None else _with(one.train, pairs),
            held=replace(one.held, right=~one.held.right),
        )
        if at < MALICIOUS
        else one
        for at, one in enumerate(clients)
    ]


def _between(pool: Questions, a: Rows, b: Rows) -> Pairs:
    return Pairs(
        a=pool.vectors[a],
        b=pool.vectors[b],
        right=np.ones(len(a), dtype=np.bool_),
        category=("all",) * len(a),
        group=np.arange(len(a)),
    )


def _with(train: Pairs, pairs: Pairs) -> Pairs:
    return Pairs(
        a=np.concatenate([train.a, pairs.a]),
        b=np.concatenate([train.b, pairs.b]),
        right=np.concatenate([train.right, pairs.right]),
        category=train.category + pairs.category,
        group=np.concatenate([train.group, pairs.group + train.group.max() + 1]),
    )


def averages() -> dict[str, Average]:
    """Return the ways to make one update of many, each (k, d), and the numbers of pairs behind them."""
    return {
        "FedAvg as it is": mean,
        "FedAvg, refusing and clipping": _clipping,
        "median": lambda updates, weights: np.median(np.stack(_finite(updates)), axis=0).astype(np.float32),
        "trimmed mean": _trimmed,
        "Krum": lambda updates, weights: _krum(_finite(updates), keep=1),
        "Multi-Krum": lambda updates, weights: _krum(_finite(updates), keep=len(updates) - MALICIOUS),
    }


def _finite(updates: Sequence[Matrix]) -> list[Matrix]:
    """Return the updates that are not refused."""
    return [one for one in updates if np.isfinite(one).all()]


def _clipping(updates: Sequence[Matrix], weights: Sequence[int]) -> Matrix:
    """Refuse what is not finite, clip the rest to the median of its norms, and average with weights that are capped.

    A client says itself how many pairs it has: none counts for more than twice the median.
    """
    kept = [(one, weight) for one, weight in zip(updates, weights, strict=True) if np.isfinite(one).all()]
    norm = float(np.median([np.linalg.norm(one) for one, _ in kept]))
    most = int(2 * np.median([weight for _, weight in kept]))
    return mean([clipped(one, norm) for one, _ in kept], [min(weight, most) for _, weight in kept])


def _trimmed(updates: Sequence[Matrix], weights: Sequence[int]) -> Matrix:
    """Leave out, of each component, as many of the largest and of the smallest as there are malicious clients."""
    ordered = np.sort(np.stack(_finite(updates)), axis=0)
    made: Matrix = ordered[MALICIOUS:-MALICIOUS].mean(axis=0).astype(np.float32)
    return made


def _krum(updates: Sequence[Matrix], keep: int) -> Matrix:
    """Return the mean of the `keep` updates nearest to their n - f - 2 nearest others (Blanchard et al. 2017)."""
    flat = np.stack([one.ravel() for one in updates]).astype(np.float64)
    squares = np.square(flat).sum(axis=1)
    apart = squares[:, None] + squares[None, :] - 2 * flat @ flat.T
    np.fill_diagonal(apart, -np.inf)
    near = np.sort(apart, axis=1)[:, 1 : max(2, len(flat) - MALICIOUS - 1)]
    best = np.argsort(near.sum(axis=1), kind="stable")[:keep]
    made: Matrix = np.mean([updates[at] for at in best], axis=0).astype(np.float32)
    return made
