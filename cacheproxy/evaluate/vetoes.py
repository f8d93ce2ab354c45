"""Vetoes: why candidates that were near enough to be served were not, and how often that was right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cacheproxy.policy.calibrate import Interval, wilson

if TYPE_CHECKING:
    from collections import Counter


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """How often one reason refused, and how often the answer was wrong indeed (`rightly`).

    `rightly_interval` is the 95 % Wilson interval of that share.
    """

    n: int
    rightly: int
    wrongly: int
    rightly_interval: Interval | None


def refused_of(counts: Counter[tuple[str, bool]]) -> dict[str, Refused]:
    """Return the table by reason, from counts by reason and whether it refused rightly."""
    found = {}
    for reason in sorted({reason for reason, _ in counts}):
        rightly, wrongly = counts[reason, True], counts[reason, False]
        found[reason] = Refused(
            n=rightly + wrongly,
            rightly=rightly,
            wrongly=wrongly,
            rightly_interval=wilson(rightly, rightly + wrongly),
        )
    return found
