"""Threads that compute for long, behind the one that answers everybody."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICE = 5
"""A third of the processor time of a thread that wants it as well; what is idle is theirs as before."""


def step_back() -> None:
    """Let the event loop go first: lower the priority of the calling thread, where the system has one for threads."""
    if sys.platform == "linux":  # elsewhere it would be that of the whole process
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)
