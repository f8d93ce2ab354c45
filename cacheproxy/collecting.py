"""Python's garbage collector, kept from holding callers up by walking through all that is kept.

Nearly all that a proxy makes is freed as its last user lets go of it; the collector is for what holds itself, such as a
connection and its protocol. To find that, a full collection walks everything that is alive, and what is kept is most of
it: some 30 us an entry, since it looks at each of its hundred values, and that many come from main memory. With 64
requests in flight Python did so several times a second.

Here what outlives one young collection is put out of the collector's sight (`gc.freeze`), so that each object is walked
through once. It is freed as before; what holds itself, and was in use just then, waits for a full collection, which
comes in an idle moment, and at the latest before such objects can be more than those alive.
"""

from __future__ import annotations

import gc
from time import perf_counter
from typing import TYPE_CHECKING, Self

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TEND_S = 1.0
"""Pause between two calls of `tend`."""
YOUNG = 10_000
"""Objects more than before that a young collection is made for, and about the most it walks through: some 600 entries.

Python's own 700 are fewer than what a few requests hold at once.
"""
ROOM = 250_000
"""Objects out of sight by which there may always be more than were alive at the last full collection: about 50 MB."""
_WORTHWHILE = 50_000
"""So many more make a full one worth an idle moment."""
_LONG_S = 0.25
"""A full one that took longer than this is a moment's work no more: whoever comes meanwhile would wait."""

_log = structlog.get_logger()


class Collecting:
    """The collector's policy of a process that serves, used as `with`. `answering` tells how many requests it has."""

    def __init__(self, answering: Callable[[], int]) -> None:
        self.full = 0
        """How many full collections were made, the one at the beginning included."""
        self._answering = answering
        self._alive = 0
        self._more = 0
        self._took_s = 0.0
        self._before: tuple[int, int, int] = (0, 0, 0)

    def __enter__(self) -> Self:
        """Collect what the start left, and put out of sight all that was loaded."""
        self._before = gc.get_threshold()
        gc.callbacks.append(self._collected)
        gc.set_threshold(YOUNG, *self._before[1:])
        self._collect()
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the collector as it was."""
        gc.callbacks.remove(self._collected)
        gc.set_threshold(*self._before)
        gc.unfreeze()

    async def tend(self) -> None:
        """Make a full collection where it is time."""
        enough = _WORTHWHILE if self._took_s < _LONG_S and not self._answering() else self._room
        if self._more > enough:
            # What is freed again was counted as well: only now is the exact number worth a walk along the list.
            self._more = gc.get_freeze_count() - self._alive
            if self._more > enough:
                self._collect()

    @property
    def _room(self) -> int:
        return max(ROOM, self._alive)

    def _collect(self) -> None:
        began_s, more = perf_counter(), self._more
        gc.unfreeze()
        found = gc.collect()
        self._alive, self._more = gc.get_freeze_count(), 0
        self.full += 1
        self._took_s = perf_counter() - began_s
        _log.debug(
            "garbage_collected", took_ms=round(self._took_s * 1000, 1), more=more, found=found, alive=self._alive
        )

    def _collected(self, phase: str, _: Mapping[str, int]) -> None:
        """Put out of sight what a collection left: called by the collector, in whatever thread it runs."""
        if phase == "stop":
            gc.freeze()
            self._more += YOUNG
