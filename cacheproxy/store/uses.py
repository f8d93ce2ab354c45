"""How often an entry is used: a count in which each use weighs half after a while."""

from __future__ import annotations

import math
from dataclasses import dataclass

HALF_LIFE_S = 6 * 3600.0
"""After which a use weighs half: an entry of this morning's traffic fades by the evening, a daily one lasts."""


@dataclass(frozen=True, slots=True)
class Uses:
    """How often an entry was used since the last one was noted, and when last."""

    count: int
    last_s: float


def faded(hits: float, idle_s: float) -> float:
    """Return what `hits` weigh after so many seconds; a clock that ran backwards fades nothing."""
    return hits * math.exp2(-max(0.0, idle_s) / HALF_LIFE_S)
