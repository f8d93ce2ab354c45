"""Threads that compute for long, behind the one that answers everybody."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BEHIND_LOOP, BEHIND_ALL = 5, 10
"""A third, and a tenth, of the processor time of a thread that wants it as well; what is idle is theirs as before."""


def step_back(by: int = BEHIND_LOOP) -> None:
    """Let others go first: lower the priority of the calling thread, where the system has one for threads."""
    if sys.platform == "linux":  # elsewhere it would be that of the whole process
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + by)


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Cores:
    """Processor cores that two kinds of work share: what is nearly done takes them first. For the event loop alone.

    Work that goes first claims what it can use, and waits for nobody; other work begins while a core is left for it.
    One always is, so that work that goes first, and hangs or never ends, cannot stop the other.
    """

    def __init__(self, number: int) -> None:
        """Share so many cores."""
        self._number = number
        self._claimed = 0
        self._told: list[Callable[[], None]] = []

    @property
    def left(self) -> int | None:
        """How many cores are not claimed; None while none is, and nobody has to count."""
        return max(self._number - self._claimed, 1) if self._claimed else None

    def claim(self, cores: int) -> None:
        """Say how many cores the work that goes first can use from now on."""
        fewer, self._claimed = cores < self._claimed, cores
        if fewer:
            for tell in self._told:
                tell()

    def when_fewer(self, tell: Callable[[], None]) -> None:
        """Call this each time when fewer cores are claimed than before."""
        self._told.append(tell)
