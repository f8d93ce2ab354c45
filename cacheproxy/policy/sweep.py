"""Sweep: what other thresholds, or other least probabilities, would have done with the logged lookups. Pure.

Each lookup counts by itself: that a miss leaves an entry of its own, so that the next such question is an exact hit, is
not followed. Where similarity decides, only that is known of a candidate below the threshold that was in force: what
else might have refused it was not asked, so hits there are at most so many. Where a verifier decides, what was refused
for its probability alone would be served by a lower one; what the error budget refused, by none, and neither a
candidate that the verifier was not asked of.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from cacheproxy.policy.bound import Share, share

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

DOUBTED = frozenset({"improbable", "over_budget"})
"""Why a candidate is refused for its probability and nothing else: the pack's word, and that of the error budget."""


class Scale(StrEnum):
    """What decides, and what a level is of: a threshold of similarity, or the least probability."""

    SIMILARITY = "similarity"
    PROBABILITY = "probability"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One logged lookup. `similarity` is None where similarity was not asked: its outcome depends on no threshold.

    `verified`: a verifier decides, or would have, and similarity only where it begins. `probability` is None where it
    was not asked; `forbidden` says that something else than the probability made it a miss.
    """

    hit: bool
    similarity: float | None
    threshold: float | None
    verified: bool = False
    probability: float | None = None
    forbidden: bool = False

    @property
    def refused(self) -> bool:
        """Whether something else than the threshold made it a miss: it would be one at any threshold."""
        if self.verified:
            return not self.hit
        return (
            not self.hit
            and self.similarity is not None
            and self.threshold is not None
            and self.similarity >= self.threshold
        )

    def place(self, scale: Scale) -> float | None:
        """Return where it stands on a scale; None where no level of it would change the outcome."""
        return self.similarity if scale is Scale.SIMILARITY else self.probability

    def servable(self, scale: Scale) -> bool:
        """Whether a low enough level would serve it."""
        return not (self.refused if scale is Scale.SIMILARITY else self.forbidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The last word on one pair of a question and an entry; a pair counts once however often it was served.

    `probability` is what the verifier said of it, None where it was not asked, or not remembered.
    """

    similarity: float
    good: bool
    probability: float | None = None

    def place(self, scale: Scale) -> float | None:
        """Return where it stands on a scale."""
        return self.similarity if scale is Scale.SIMILARITY else self.probability


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """What one level would have done."""

    level: float
    lookups: int
    hits: int
    hit_rate: float | None
    near_misses: int
    """Lookups within the band below it."""
    false_hits: Share
    """Share of false ones among the labelled pairs it would have served; without any, nothing is known."""


def sweep(
    seen: Iterable[Seen],
    labels: Collection[Label],
    levels: Sequence[float],
    band: float,
    scale: Scale = Scale.SIMILARITY,
) -> list[At]:
    """Return what each level of a scale would have done, in the order given."""
    lookups = same = 0
    servable: list[float] = []
    near: list[float] = []
    for one in seen:
        lookups += 1
        place = one.place(scale)
        if place is None:
            same += one.hit
            continue
        if one.servable(scale):
            servable.append(place)
        if one.servable(scale) or scale is Scale.SIMILARITY:
            near.append(place)
    servable.sort()
    near.sort()
    found = []
    for level in levels:
        hits = same + len(servable) - bisect_left(servable, level)
        found.append(
            At(
                level=level,
                lookups=lookups,
                hits=hits,
                hit_rate=hits / lookups if lookups else None,
                near_misses=bisect_left(near, level) - bisect_left(near, level - band),
                false_hits=false_hits(labels, level, scale),
            )
        )
    return found


def false_hits(labels: Iterable[Label], level: float, scale: Scale = Scale.SIMILARITY) -> Share:
    """Return the share of false ones among the labelled pairs that a level serves."""
    served = [label.good for label in labels if (place := label.place(scale)) is not None and place >= level]
    return share(served.count(False), len(served))
