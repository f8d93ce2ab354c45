"""Waiting for something to become true, with a bound: the tests' only way to wait."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLL_S = 0.005
LONG_S = 15.0
"""Longest wait for what comes at once, on a machine that does much else."""


async def eventually(check: Callable[[], bool], what: str, within_s: float = LONG_S) -> None:
    """Return as soon as `check()` holds; fail naming `what` when it does not within `within_s` seconds."""
    deadline_s = time.monotonic() + within_s
    while not check():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s} s: {what}")
        await asyncio.sleep(POLL_S)


async def eventually_true(check: Callable[[], Awaitable[bool]], what: str, within_s: float = LONG_S) -> None:
    """Like `eventually`, for a check that must be awaited."""
    deadline_s = time.monotonic() + within_s
    while not await check():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s} s: {what}")
        await asyncio.sleep(POLL_S)
