"""What is compared of two questions, as numbers: the cheap part of a verification, the same in training and serving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz.distance import Indel, JaroWinkler

from cacheproxy.verify.alignment import MOST_RELATED, Alignment, align
from cacheproxy.verify.reading import Reading, read
from cacheproxy.verify.rules import RULES, weigh
from cacheproxy.verify.vetoes import veto_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from cacheproxy.verify.cross import Words

VERSION = 1
"""Of what the numbers mean; an artefact of another version is refused."""

_MOST_PIECES = 96
_COMMON_ID = 1996
"""From here on the vocabulary of BERT is ordered by how common a piece is, commonest first; before it are letters."""
_LETTERS, _BEGIN = 400, 100
"""Characters whose letters are compared: of the text, and of how it begins."""
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
    `weight` the sum of that. `letters` and `begin` are what letters are compared of, in lower case.
    """

    text: str
    reading: Reading
    pieces: NDArray[np.int64]
    directions: NDArray[np.float32]
    weights: NDArray[np.float32]
    weight: np.float32
    letters: str
    begin: str


def prepare(text: str, words: Words) -> Text:
    """Read a question of any length; never raises for any string."""
    ids = np.array(list(dict.fromkeys(words.ids(text)[:_MOST_PIECES])), dtype=np.int64)
    weights = _rarity(len(words.vectors)).take(ids)
    reading = read(text)
    return Text(
        text=text,
        reading=reading,
        pieces=ids,
        directions=words.directions(ids),
        weights=weights,
        weight=np.add.reduce(weights),
        letters=reading.text[:_LETTERS].lower(),
        begin=reading.text[:_BEGIN].lower(),
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
    pair = align(asked.reading, kept.reading)
    ruled = weigh(pair)
    row = np.array([cosine, *_alignment(asked, kept), *_words(asked, kept, pair), *ruled], dtype=np.float32)
    if not np.isfinite(row).all():
        row = np.nan_to_num(row, nan=0.0, posinf=0.0, neginf=0.0)
    return row, veto_of(ruled, pair)


def _alignment(asked: Text, kept: Text) -> list[float]:
    """Compare word pieces by their own embeddings: each is as matched as its nearest one on the other side."""
    if not len(asked.pieces) or not len(kept.pieces):
        return [0.0] * 8
    near = asked.directions.dot(kept.directions.T)
    mean, missed, worst = _matched(np.maximum.reduce(near, axis=1), asked)
    mean_other, missed_other, worst_other = _matched(np.maximum.reduce(near, axis=0), kept)
    return [
        (mean + mean_other) / 2,
        min(mean, mean_other),
        max(mean, mean_other),
        missed,
        missed_other,
        worst[0],
        worst_other[0],
        sorted((*worst, *worst_other))[-2],
    ]


def _matched(nearest: NDArray[np.float32], text: Text) -> tuple[float, float, list[float]]:
    """Return how well a text's pieces are matched, by how rare they are: the mean, what is missed, the most missed."""
    missed = (1.0 - nearest) * text.weights
    missed.sort()
    falling = missed[::-1]
    return float(nearest.dot(text.weights) / text.weight), float(np.add.reduce(falling)), falling[:2].tolist()


def _words(asked: Text, kept: Text, pair: Alignment) -> list[float]:
    """Compare words, their order, and what stands on one side only."""
    one, other = asked.reading, kept.reading
    here, there = one.content_set, other.content_set
    strange, strange_other = here - there, there - here
    opposites, siblings, synonyms = _kinship(strange, strange_other, pair)
    lengths = len(one.tokens), len(other.tokens)
    return [
        _overlap(one.lemma_set, other.lemma_set),
        _overlap(here, there),
        (len(here) - len(strange)) / max(1, min(len(here), len(there))),
        float(len(strange)),
        float(len(strange_other)),
        float(min(len(strange), len(strange_other))),
        Indel.normalized_similarity(one.lemmas, other.lemmas),
        Indel.normalized_similarity(asked.letters, kept.letters),
        JaroWinkler.similarity(asked.begin, kept.begin),
        _order(one.content, other.content),
        math.log1p(max(lengths)),
        min(lengths) / max(1, *lengths),
        float(one.tokens[:1] == other.tokens[:1]),
        float(one.question == other.question),
        _overlap(one.entities, other.entities),
        float(len(one.entities ^ other.entities)),
        opposites,
        siblings,
        synonyms,
    ]


def _kinship(words: AbstractSet[str], others: AbstractSet[str], pair: Alignment) -> tuple[float, float, float]:
    """Count the words of one side that have an opposite, a sibling, or a synonym among those of the other."""
    if not pair.related or len(words) * len(others) > MOST_RELATED:
        return 0.0, 0.0, 0.0
    kin = [(one, how) for (one, other), how in pair.related.items() if one in words and other in others]
    opposites = {one for one, how in kin if how.opposite}
    siblings = {one for one, how in kin if how.sibling}
    synonyms = {one for one, how in kin if how.synonym}
    return float(len(opposites)), float(len(siblings)), float(len(synonyms))


def _overlap(one: AbstractSet[str], other: AbstractSet[str]) -> float:
    """Return the Jaccard index; 1 for nothing on either side."""
    both = len(one & other)
    together = len(one) + len(other) - both
    return both / together if together else 1.0


def _order(one: Sequence[str], other: Sequence[str]) -> float:
    """Return the share of neighbours among the common words that stand in the same order on both sides."""
    place = {word: at for at, word in reversed(list(enumerate(other)))}
    common = [place[word] for word in dict.fromkeys(one) if word in place]
    if len(common) < 2:
        return 1.0
    return sum(a < b for a, b in pairwise(common)) / (len(common) - 1)
