"""Pairs of made-up questions: vectors around topics, in which one plane says what answers and the rest is noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from cacheproxy_federated.task import Pairs

from cacheproxy.embed.head import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIM = 16
TELLING = 4
"""So many of the axes say which topic a question is of."""


def pairs(n: int, seed: int, *, noise: float = 0.8, category: str = "faq") -> Pairs:
    """Return n pairs, every other one right; no two share a question."""
    random = np.random.default_rng(seed)
    topics = random.normal(size=(n, TELLING))
    right = np.arange(n) % 2 == 0
    other = np.where(right[:, None], topics, random.normal(size=(n, TELLING)))
    return Pairs(
        a=_questions(topics, noise, random),
        b=_questions(other, noise, random),
        right=right,
        category=(category,) * n,
        group=np.arange(n),
    )


def _questions(topics: NDArray[np.float64], noise: float, random: np.random.Generator) -> NDArray[np.float32]:
    rest = random.normal(size=(len(topics), DIM - TELLING)) * noise
    return unit(np.concatenate([topics, rest], axis=1).astype(np.float32))
