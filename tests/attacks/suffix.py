"""Suffix collisions: tokens are climbed to, one place after another, until a text meets the target's key.

The attacker knows the encoder, or a stand-in for it, and tries what he found elsewhere (arXiv 2601.23088). He does not
repeat the target: that is the prefix attack. Greedy coordinate ascent, seeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.attacks.planted import ORDERS
from tests.attacks.questions import blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from numpy.typing import NDArray

    from cacheproxy.verify.cross import Words

    Encode = Callable[[Sequence[str]], NDArray[np.float32]]
    """Texts to unit vectors of shape (n, dim)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Climb:
    """How hard to look: so many places, so many words tried for each, so many rounds over all of them."""

    places: int = 8
    tried: int = 48
    rounds: int = 2


@dataclass(frozen=True, slots=True)
class Collision:
    """The text that came closest, and how close, by the encoder that was climbed on."""

    text: str
    similarity: float


def climb(target: str, order: str, encode: Encode, random: Random, how: Climb) -> Collision:
    """Return the order with the suffix that comes closest to the target."""
    goal = encode([target])[0]
    words = _words(target)
    suffix: list[str] = []
    best = Collision(order, float(encode([order])[0] @ goal))
    for _ in range(how.rounds):
        for place in range(how.places):
            tried = random.sample(words, min(how.tried, len(words)))
            made = [[*suffix[:place], word, *suffix[place + 1 :]] for word in tried]
            texts = [f"{order} {' '.join(one)}" for one in made]
            near = encode(texts) @ goal
            at = int(np.argmax(near))
            if near[at] > best.similarity:
                best, suffix = Collision(texts[at], float(near[at])), made[at]
            elif len(suffix) <= place:
                suffix.append(random.choice(words))
    return best


def surrogate(words: Words) -> Encode:
    """Return another encoder: the mean of the words' own vectors, without a transformer on top."""
    vectors = words.vectors

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [vectors[words.ids(text) or [0]].mean(axis=0) for text in texts]
        matrix = np.stack(rows).astype(np.float32)
        found: NDArray[np.float32] = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        return found

    return encode


def orders() -> tuple[str, ...]:
    """Return what suffixes are hung on."""
    return ORDERS


def _words(target: str) -> list[str]:
    """Return the words to try: the target's own, and those of all other questions."""
    own = [word.strip("?.,!").lower() for word in target.split()]
    other = [word.strip("?.,!").lower() for block in blocks() for word in block.question.split()]
    return list(dict.fromkeys(word for word in (*own, *own, *other) if word))
