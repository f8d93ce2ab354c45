"""Local differential privacy of what leaves a node: an update clipped to a norm, with Gaussian noise on it.

Counts of held-back pairs are clipped and noised as well (`noisy`), and how many pairs a node has is not sent.

The epsilon is exact, not a bound: independent releases of the Gaussian mechanism are together one Gaussian mechanism
(Dong, Roth and Su, "Gaussian Differential Privacy", 2019, corollary 3.3), whose delta at an epsilon is known in closed
form (Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018, theorem 8). No round is taken
to have been sampled: an observer knows who took part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPLACED = 2.0
"""Sensitivity, in clipping norms, to all of a node's data: two clipped updates are at most two norms apart."""
APART = math.sqrt(2.0)
"""The same of counts, in the number of pairs that they are of: they are not negative, so at right angles at most."""
_MOST_EPSILON = 1e6
_STEPS = 200
_VANISHING = -30.0


def clipped(update: NDArray[np.float32], norm: float) -> NDArray[np.float32]:
    """Return an update of at most this L2 norm, in the same direction. Raises ValueError for one that is not finite."""
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"a clipping norm must be above 0, got {norm}")
    length = float(np.linalg.norm(update.astype(np.float64)))
    if not math.isfinite(length):
        raise ValueError("an update that is not finite cannot be clipped")
    if length <= norm:
        return update.copy()
    # Rounding to float32 may add a hair to the norm, which the guarantee does not have.
    found: NDArray[np.float32] = (update.astype(np.float64) * (norm / length * (1 - 1e-6))).astype(np.float32)
    return found


def noised(update: NDArray[np.float32], deviation: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Return an update with Gaussian noise of this standard deviation on every component.

    The generator must be seeded from the operating system (`np.random.default_rng()`): whoever knows the seed, such as
    a server that sends one, can take the noise off again.
    """
    if not (math.isfinite(deviation) and deviation >= 0):
        raise ValueError(f"a standard deviation must be 0 or more, got {deviation}")
    found: NDArray[np.float32] = (update + random.normal(0.0, deviation, update.shape)).astype(np.float32)
    return found


def private(
    start: NDArray[np.float32], made: NDArray[np.float32], norm: float, multiplier: float, random: np.random.Generator
) -> NDArray[np.float32]:
    """Return what a node may send: where it started, and its update, clipped and noised by `multiplier` * `norm`."""
    return start + noised(clipped(made - start, norm), multiplier * norm, random)


def epsilon(multiplier: float, releases: int, delta: float, sensitivity: float = REPLACED) -> float:
    """Return the epsilon of so many releases with noise of `multiplier` clipping norms; infinity without noise.

    With the default sensitivity it is of all the data of a node (local privacy). Raises ValueError for a delta outside
    (0, 1) or a negative number.
    """
    if not 0 < delta < 1 or releases < 0 or not multiplier >= 0 or not sensitivity > 0:
        raise ValueError(f"no epsilon for noise {multiplier}, {releases} releases, delta {delta}")
    if not releases:
        return 0.0
    if not multiplier:
        return math.inf
    return _epsilon(sensitivity / multiplier * math.sqrt(releases), delta)


def composed(multiplier: float, updates: int, counts: int, delta: float) -> float:
    """Return the epsilon of so many updates and releases of counts together, for all the data of a node.

    Both have noise of `multiplier` times what they are clipped to. Raises ValueError as `epsilon`.
    """
    if not 0 < delta < 1 or updates < 0 or counts < 0 or not multiplier > 0:
        raise ValueError(f"no epsilon for noise {multiplier}, {updates} and {counts} releases, delta {delta}")
    squared = updates * REPLACED**2 + counts * APART**2
    return _epsilon(math.sqrt(squared) / multiplier, delta) if squared else 0.0


def _epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of a Gaussian mechanism of sensitivity `mu` in standard deviations."""
    if delta_at(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, _MOST_EPSILON
    if delta_at(high, mu) > delta:
        return math.inf
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle, mu) > delta else (low, middle)
    return high


def delta_at(told: float, mu: float) -> float:
    """Return the delta that a Gaussian mechanism of sensitivity `mu` in standard deviations has at an epsilon."""
    above, below = -told / mu + mu / 2, -told / mu - mu / 2
    # e^epsilon times a tail, of which one may overflow where the other vanishes.
    return _tail(above) - math.exp(told + _log_tail(below))


def _tail(at: float) -> float:
    """Return the normal distribution function, exact far below zero, too (`NormalDist.cdf` is not)."""
    return math.erfc(-at / math.sqrt(2)) / 2


def _log_tail(at: float) -> float:
    """Return the logarithm of the same; by its asymptotic series where it would vanish."""
    if at > _VANISHING:
        return math.log(_tail(at))
    squared = at * at
    return -squared / 2 - math.log(-at * math.sqrt(2 * math.pi)) + math.log1p(-1 / squared + 3 / squared**2)
