"""The order in which the cross-encoder sees pairs: epoch after epoch, each with traps and rewordings made anew."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from cacheproxy.training.generate import made_of
from cacheproxy.training.material import Example, pairs_of_sets
from cacheproxy.verify import lexicon

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cacheproxy.training.material import Part

_GENERATED = 0.2
"""Generated pairs for each other one."""
_OF_SETS, _LEAST_OF_SETS = 0.25, 10_000
"""Most pairs of sets for each one that is given, once they are so many: they must not drown what is given, and few that
are given not drown them."""
_MOST_OF_A_FILE = 40_000
"""Pairs of one file in an epoch: a large file must not drown the others."""
_WINDOW = 50
"""Batches whose pairs are put together by length, so that little of a batch is padding."""


def epoch(part: Part, random: Random) -> list[Example]:
    """Return one epoch: the given pairs, pairs of the sets, and generated ones, shuffled."""
    pairs: list[Example] = []
    for given in part.pairs.values():
        pairs += random.sample(given, min(len(given), _MOST_OF_A_FILE))
    sets = pairs_of_sets(part.sets, random)
    most = max(int(_OF_SETS * len(pairs)), _LEAST_OF_SETS) if pairs else len(sets)
    pairs += random.sample(sets, min(len(sets), most))
    pairs += generated(part, random, int(_GENERATED * len(pairs)))
    random.shuffle(pairs)
    return pairs


def generated(part: Part, random: Random, count: int) -> list[Example]:
    """Return about so many pairs made of the part's questions, somewhat more traps than rewordings; none of none."""
    if not part.questions:
        return []
    made = made_of(part.questions, lexicon.opposites, random, traps=count * 5 // 9, rewordings=count * 4 // 9)
    return [Example(one.text, one.other, one.label) for one in made]


def batches(part: Part, seed: int, size: int) -> Iterator[list[Example]]:
    """Yield batches for ever, the same ones for the same seed; each pair in a random order of its two."""
    random = Random(seed)
    while True:
        pairs = epoch(part, random)
        window = size * _WINDOW
        for start in range(0, max(len(pairs) - size, 1), window):
            near = sorted(pairs[start : start + window], key=lambda pair: len(pair.a) + len(pair.b))
            cut = [near[at : at + size] for at in range(0, len(near), size)]
            random.shuffle(cut)
            for batch in cut:
                yield _turned(batch, random)


def _turned(batch: Sequence[Example], random: Random) -> list[Example]:
    return [one if random.random() < 0.5 else Example(one.b, one.a, one.label) for one in batch]
