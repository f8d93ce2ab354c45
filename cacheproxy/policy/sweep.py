"""Sweep: what other thresholds would have done with the lookups that were logged. Pure.

Each lookup counts by itself: that a miss leaves an entry of its own, so that the next such question is an exact hit, is
not followed. Below the threshold that was in force only similarity is known of a candidate: what else might have
refused it was not asked, so hits there are at most so many.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.policy.bound import Share, share

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One logged lookup. `similarity` is None where similarity was not asked: its outcome depends on no threshold."""

    hit: bool
    similarity: float | None
    threshold: float | None

    @property
    def refused(self) -> bool:
        """Whether something else than the threshold made it a miss: it would be one at any threshold."""
        return (
            not self.hit
            and self.similarity is not None
            and self.threshold is not None
            and self.similarity >= self.threshold
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The last word on one pair of a question and an entry; a pair counts once however often it was served."""

    similarity: float
    good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """What one threshold would have done."""

    threshold: float
    lookups: int
    hits: int
    hit_rate: float | None
    near_misses: int
    """Lookups within the band below it."""
    false_hits: Share
    """Share of false ones among the labelled pairs it would have served; without any, nothing is known."""


def sweep(seen: Iterable[Seen], labels: Collection[Label], thresholds: Sequence[float], band: float) -> list[At]:
    """Return what each threshold would have done, in the order given."""
    lookups = same = 0
    servable: list[float] = []
    near: list[float] = []
    for one in seen:
        lookups += 1
        if one.similarity is None:
            same += one.hit
            continue
        near.append(one.similarity)
        if not one.refused:
            servable.append(one.similarity)
    servable.sort()
    near.sort()
    found = []
    for threshold in thresholds:
        hits = same + len(servable) - bisect_left(servable, threshold)
        found.append(
            At(
                threshold=threshold,
                lookups=lookups,
                hits=hits,
                hit_rate=hits / lookups if lookups else None,
                near_misses=bisect_left(near, threshold) - bisect_left(near, threshold - band),
                false_hits=false_hits(labels, threshold),
            )
        )
    return found


def false_hits(labels: Iterable[Label], threshold: float) -> Share:
    """Return the share of false ones among the labelled pairs that a threshold serves."""
    served = [label.good for label in labels if label.similarity >= threshold]
    return share(served.count(False), len(served))
