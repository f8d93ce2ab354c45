"""What several replicas said, in the order of one clock, and whether it keeps the promises of docs/operations.md.

Every process of one machine reads the same monotonic clock, so intervals of operations may be compared. A version is
one answer of the backend; that it is older than another is claimed only where intervals leave no doubt. So an honest
history never fails, and of operations at the same time nothing is said (as in the checkers of Jepsen and porcupine).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

NEVER_S = float("inf")


class Made(msgspec.Struct, frozen=True, tag=True):
    """A new answer came to be: after its fill had begun (its fence was taken before), before it could be kept."""

    key: str
    version: int
    at_s: float


class Kept(msgspec.Struct, frozen=True, tag=True):
    """A replica said that it kept a version."""

    replica: str
    key: str
    version: int
    at_s: float


class Served(msgspec.Struct, frozen=True, tag=True):
    """A replica answered from what was kept."""

    replica: str
    key: str
    version: int
    began_s: float
    ended_s: float


class Purged(msgspec.Struct, frozen=True, tag=True):
    """A purge: when it was called, and from when on it promised to bind every replica (`NEVER_S`: it did not)."""

    key: str
    called_s: float
    binding_s: float


Event = Made | Kept | Served | Purged


class Violation(msgspec.Struct, frozen=True):
    """A promise that was broken: `purge`, `monotone` or `foreign`, and by which answer."""

    promise: str
    served: Served


def violations(history: Iterable[Event]) -> list[Violation]:
    """Return every answer that breaks a promise.

    - `purge`: it began when a purge was binding, and its version was made before that purge was called;
    - `monotone`: this replica had served, or kept, a version that was surely kept later;
    - `foreign`: nobody had made this version of this key yet when the answer ended.
    """
    by_key: dict[str, list[Event]] = defaultdict(list)
    for event in history:
        by_key[event.key].append(event)
    return [found for events in by_key.values() for found in _of_key(events)]


def divergent(views: Mapping[str, Mapping[str, int | None]]) -> list[str]:
    """Return the keys on which replicas do not agree; `views` has each replica's version of each key."""
    keys = {key for view in views.values() for key in view}
    return sorted(key for key in keys if len({view.get(key) for view in views.values()}) > 1)


def write_history(file: Path, history: Sequence[Event]) -> None:
    """Write what one process saw."""
    file.write_bytes(msgspec.msgpack.encode(history))


def read_history(file: Path) -> list[Event]:
    """Read what one process saw."""
    return msgspec.msgpack.decode(file.read_bytes(), type=list[Event])


class _Latest:
    """The greatest value that was told up to a moment."""

    def __init__(self, told: Iterable[tuple[float, float]]) -> None:
        ordered = sorted(told)
        self._moments = [moment for moment, _ in ordered]
        self._values = list(accumulate((value for _, value in ordered), max))

    def up_to(self, moment: float, *, included: bool) -> float:
        place = (bisect_right if included else bisect_left)(self._moments, moment)
        return self._values[place - 1] if place else -NEVER_S


def _of_key(events: Sequence[Event]) -> list[Violation]:
    made_s = {event.version: event.at_s for event in events if isinstance(event, Made)}
    kept = [event for event in events if isinstance(event, Kept) and event.version in made_s]
    served = [event for event in events if isinstance(event, Served)]
    known = [event for event in served if event.version in made_s]
    kept_by_s: dict[int, float] = defaultdict(lambda: NEVER_S)
    for version, moment_s in [(one.version, one.at_s) for one in kept] + [(one.version, one.ended_s) for one in known]:
        kept_by_s[version] = min(kept_by_s[version], moment_s)
    purged = _Latest((event.binding_s, event.called_s) for event in events if isinstance(event, Purged))
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in kept:
        seen[one.replica].append((one.at_s, made_s[one.version]))
    for answer in known:
        seen[answer.replica].append((answer.ended_s, made_s[answer.version]))
    newest = {replica: _Latest(told) for replica, told in seen.items()}
    found: list[Violation] = []
    for answer in served:
        if answer.version not in made_s or made_s[answer.version] > answer.ended_s:
            found.append(Violation("foreign", answer))
        elif made_s[answer.version] < purged.up_to(answer.began_s, included=True):
            found.append(Violation("purge", answer))
        elif kept_by_s[answer.version] < newest[answer.replica].up_to(answer.began_s, included=False):
            found.append(Violation("monotone", answer))
    return found
