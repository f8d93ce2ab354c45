"""What the router makes of rewards that were measured: whom it asks, after so many of them, under which load.

The router is the real one, and so are the rewards; that each training question tells of all three arms is not: it is
what a double run of every question would teach. The large model's reward is 1.0, its answer being the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from cacheproxy.augment.arms import Arm, Router
from cacheproxy.small import TERMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cacheproxy.augment.arms import Choice, Situation

LOADS = (0.0, 0.5, 1.0)
"""As a proxy tells it: 0 up to `load.low`, 1 from `load.high` on."""
AFTER = (0, 25, 50, 100, 200, 400, 800)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a question told: its situation with examples, and the reward of each small arm."""

    situation: Situation
    augmented: float
    small: float

    def reward(self, arm: Arm) -> float:
        """Return how good an arm's answer was. Without examples the augmented arm is the small one."""
        return {Arm.AUGMENTED: self.augmented, Arm.SMALL: self.small, Arm.LARGE: 1.0}[arm]


def routed(category: str, lessons: Sequence[Seen], asked: Sequence[Seen], seed: int) -> list[dict[str, Any]]:
    """Return, after so many training questions and under each load, who is asked the reported ones and how well."""
    rows: list[dict[str, Any]] = []
    for after in _steps(len(lessons)):
        router = taught(category, lessons[:after])
        rows += [_row(router, category, asked, load, seed) | {"after": after, "load": load} for load in LOADS]
    return rows


def taught(category: str, lessons: Iterable[Seen], router: Router | None = None) -> Router:
    """Return a router that was told these rewards in their order, on top of what it knows."""
    router = router or Router(TERMS)
    for one in lessons:
        for arm in Arm:
            if arm is not Arm.AUGMENTED or one.situation.examples:
                router.reward(category, arm, one.situation, one.reward(arm))
    return router


def _row(router: Router, category: str, asked: Sequence[Seen], load: float, seed: int) -> dict[str, Any]:
    random = Random(seed)
    chosen = [_choice(router, category, one, load, random).arm for one in asked]
    shares = {arm.value: chosen.count(arm) / len(chosen) if chosen else 0.0 for arm in Arm}
    good = [one.reward(arm) for one, arm in zip(asked, chosen, strict=True)]
    offloaded = [value for value, arm in zip(good, chosen, strict=True) if arm is not Arm.LARGE]
    return {
        "shares": shares,
        "quality": sum(good) / len(good) if good else None,
        "quality_offloaded": sum(offloaded) / len(offloaded) if offloaded else None,
    }


def _choice(router: Router, category: str, one: Seen, load: float, random: Random) -> Choice:
    return router.choose(category, replace(one.situation, load=load), random, 0.0)


def _steps(lessons: int) -> list[int]:
    return sorted({after for after in AFTER if after < lessons} | {lessons})
