"""Threads that compute for long, behind the one that answers everybody."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

BEHIND_LOOP, BEHIND_ALL = 5, 10
"""A third, and a tenth, of the processor time of a thread that wants it as well; what is idle is theirs as before."""


def step_back(by: int = BEHIND_LOOP) -> None:
    """Let others go first: lower the priority of the calling thread, where the system has one for threads."""
    if sys.platform == "linux":  # elsewhere it would be that of the whole process
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + by)
