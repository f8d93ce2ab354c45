"""What is compared of two questions, as numbers: the cheap part of a verification, the same in training and serving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz.distance import Indel, JaroWinkler

from cacheproxy.verify import lexicon
from cacheproxy.verify.reading import Reading, read
from cacheproxy.verify.rules import RULES, rule_values, veto_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from cacheproxy.verify.cross import Words

VERSION = 1
"""Of what the numbers mean; an artefact of another version is refused."""

_MOST_PIECES = 96
_COMMON_ID = 1996
"""From here on the vocabulary of BERT is ordered by how common a piece is, commonest first; before it are letters."""
_SHORTEST = np.float32(1e-6)
_FAINT = np.float32(0.05)
"""The weight of punctuation and single letters."""

_OWN = (
    "cosine",
    "aligned",
    "aligned_least",
    "aligned_most",
    "unmatched",
    "unmatched_other",
    "rarest",
    "rarest_other",
    "rarest_second",
    "words_shared",
    "content_shared",
    "content_least",
    "strange",
    "strange_other",
    "strange_both",
    "words_edit",
    "letters_edit",
    "letters_begin",
    "order",
    "length",
    "length_ratio",
    "first_equal",
    "question_equal",
    "entities_shared",
    "entities_apart",
    "opposites",
    "siblings",
    "synonyms",
)
NAMES: tuple[str, ...] = _OWN + tuple(rule.name for rule in RULES)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Text:
    """One question, read once for all its pairs.

    `pieces` are its distinct word pieces, `directions` their unit embeddings (n, dim), `weights` how rare they are,
    `weight` the sum of that.
    """

    text: str
    reading: Reading
    pieces: NDArray[np.int64]
    directions: NDArray[np.float32]
    weights: NDArray[np.float32]
    weight: np.float32


def prepare(text: str, words: Words) -> Text:
    """Read a question of any length; never raises for any string."""
    ids = np.array(list(dict.fromkeys(words.ids(text)[:_MOST_PIECES])), dtype=np.int64)
    vectors = words.vectors[ids]
    lengths = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
    weights = _rarity(len(words.vectors))[ids]
    return Text(
        text=text,
        reading=read(text),
        pieces=ids,
        directions=np.divide(vectors, np.maximum(lengths, _SHORTEST)),
        weights=weights,
        weight=np.add.reduce(weights),
    )


@cache
def _rarity(pieces: int) -> NDArray[np.float32]:
    """Return how rare each of so many pieces is, by its place in the vocabulary."""
    rare = np.log1p(np.maximum(np.arange(pieces) - _COMMON_ID, 0) / 60.0).astype(np.float32)
    return np.maximum(rare, _FAINT)


def features(asked: Text, kept: Text, cosine: float) -> NDArray[np.float32]:
    """Return the numbers named `NAMES`, of shape (len(NAMES),), all finite."""
    return compare(asked, kept, cosine)[0]


def compare(asked: Text, kept: Text, cosine: float) -> tuple[NDArray[np.float32], str]:
    """Return the numbers named `NAMES`, all finite, and the name of the first rule that vetoes, "" for none."""
    ruled = rule_values(asked.reading, kept.reading)
    own = [cosine, *_alignment(asked, kept), *_words(asked.reading, kept.reading), *ruled]
    row = np.array(own, dtype=np.float32)
    if not np.isfinite(row).all():
        row = np.nan_to_num(row, nan=0.0, posinf=0.0, neginf=0.0)
    return row, veto_of(ruled)


def _alignment(asked: Text, kept: Text) -> list[float]:
    """Compare word pieces by their own embeddings: each is as matched as its nearest one on the other side."""
    if not len(asked.pieces) or not len(kept.pieces):
        return [0.0] * 8
    near = asked.directions @ kept.directions.T
    here, there = np.maximum.reduce(near, axis=1), np.maximum.reduce(near, axis=0)
    sides = (here, asked), (there, kept)
    means = [float(side @ text.weights / text.weight) for side, text in sides]
    misses = [np.sort((1.0 - side) * text.weights)[::-1] for side, text in sides]
    rarest = sorted([*misses[0][:2].tolist(), *misses[1][:2].tolist()], reverse=True)
    return [
        sum(means) / 2,
        min(means),
        max(means),
        float(np.add.reduce(misses[0])),
        float(np.add.reduce(misses[1])),
        float(misses[0][0]),
        float(misses[1][0]),
        rarest[1],
    ]


def _words(asked: Reading, kept: Reading) -> list[float]:
    """Compare words, their order, and what stands on one side only."""
    one, other = frozenset(asked.lemmas), frozenset(kept.lemmas)
    here, there = frozenset(asked.content), frozenset(kept.content)
    strange, strange_other = here - there, there - here
    opposites, siblings, synonyms = _kinship(strange, strange_other)
    lengths = len(asked.tokens), len(kept.tokens)
    return [
        _overlap(one, other),
        _overlap(here, there),
        len(here & there) / max(1, min(len(here), len(there))),
        float(len(strange)),
        float(len(strange_other)),
        float(min(len(strange), len(strange_other))),
        Indel.normalized_similarity(asked.lemmas, kept.lemmas),
        Indel.normalized_similarity(asked.text[:400].lower(), kept.text[:400].lower()),
        JaroWinkler.similarity(asked.text[:100].lower(), kept.text[:100].lower()),
        _order(asked.content, kept.content),
        math.log1p(max(lengths)),
        min(lengths) / max(1, *lengths),
        float(asked.tokens[:1] == kept.tokens[:1]),
        float(asked.question == kept.question),
        _overlap(asked.entities, kept.entities),
        float(len(asked.entities ^ kept.entities)),
        opposites,
        siblings,
        synonyms,
    ]


def _kinship(words: Collection[str], others: Collection[str]) -> tuple[float, float, float]:
    """Count the words of one side that have an opposite, a sibling, or a synonym among those of the other."""
    if len(words) * len(others) > 400:
        return 0.0, 0.0, 0.0
    opposites = siblings = synonyms = 0
    for word in words:
        kin = [lexicon.kin(word, another) for another in others]
        opposites += any(one.opposite for one in kin)
        siblings += any(one.sibling for one in kin)
        synonyms += any(one.synonym for one in kin)
    return float(opposites), float(siblings), float(synonyms)


def _overlap(one: Collection[str], other: Collection[str]) -> float:
    """Return the Jaccard index; 1 for nothing on either side."""
    together = len({*one, *other})
    return len(set(one) & set(other)) / together if together else 1.0


def _order(one: Sequence[str], other: Sequence[str]) -> float:
    """Return the share of neighbours among the common words that stand in the same order on both sides."""
    place = {word: at for at, word in reversed(list(enumerate(other)))}
    common = [place[word] for word in dict.fromkeys(one) if word in place]
    if len(common) < 2:
        return 1.0
    return sum(a < b for a, b in pairwise(common)) / (len(common) - 1)
