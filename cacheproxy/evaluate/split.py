"""Split labelled pairs in two halves that share no question."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cacheproxy.evaluate.pairfile import LabelledPair


def components(pairs: Sequence[LabelledPair]) -> NDArray[np.int64]:
    """Return each pair's connected component in the graph whose edges are the pairs, numbered from 0."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        parent.setdefault(text, text)
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for pair in pairs:
        parent[root(pair.a)] = root(pair.b)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(pair.a), len(numbers)) for pair in pairs], dtype=np.int64)


def halves(component: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Toss one seeded coin a component: True for the pairs of the first half."""
    coins: NDArray[np.bool_] = np.random.default_rng(seed).random(int(component.max()) + 1) < 0.5
    return coins[component]


def chosen(pairs: Sequence[LabelledPair], component: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Return `halves`, except for components of which a pair names its split: it holds for all of the component.

    Where the pairs of one component name both, it measures.
    """
    first = halves(component, seed)
    for split in ("choose", "measure"):
        named = np.array([pair.split == split for pair in pairs])
        first[np.isin(component, component[named])] = split == "choose"
    return first
