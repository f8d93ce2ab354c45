"""Prepare: a pack made ready to decide, its categories' examples embedded by the encoder in use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.policy.active import Policy
from cacheproxy.policy.classify import ExampleClassifier
from cacheproxy.policy.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.policy.active import Classify
    from cacheproxy.policy.pack import Pack

    Encode = Callable[[Sequence[str]], tuple[NDArray[np.float32], Sequence[bytes]]]
    """Texts to unit vectors of shape (n, dim) and a digest each of what the encoder could not see."""


def prepared(pack: Pack, encode: Encode, *, verifies: bool = False) -> Policy:
    """Return a pack with its compiled rules and a classifier fitted on its examples. Raises what `encode` raises.

    `verifies` says whether there is a verifier that knows the encoder.
    """
    texts = [text for category in pack.categories.values() for text in category.examples]
    if not texts:
        return replace(Policy.of(pack), verifies=verifies)
    embedded = dict(zip(texts, encode(texts)[0], strict=True))
    vectors = {name: [embedded[text] for text in told.examples] for name, told in pack.categories.items()}
    return Policy(pack=pack, rules=Rules(pack.categories, str), classify=fitted(pack, vectors), verifies=verifies)


def fitted(pack: Pack, vectors: Mapping[str, Sequence[NDArray[np.float32]]]) -> Classify | None:
    """Return a classifier for the vectors of a pack's examples by category; None where there are none."""
    examples = {name: np.stack(rows) for name, rows in vectors.items() if len(rows)}
    if not examples:
        return None
    return ExampleClassifier.fit(
        examples,
        default=pack.default_category,
        settings=pack.classifier,
        cautious=frozenset(name for name, told in pack.categories.items() if not told.allow_caching),
    )
