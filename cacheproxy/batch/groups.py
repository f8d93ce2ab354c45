"""Large lists in small steps: no step holds the event loop, or the interpreter, for long."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor

T = TypeVar("T")
R = TypeVar("R")

GROUP = 32
"""Inputs read, converted or written together."""
_LARGE_BYTES = 64 * 1024
"""A group of vectors beyond this is converted in a thread: a millisecond on the event loop."""


def groups(values: Iterable[T]) -> Iterator[list[T]]:
    """Yield the values in order, at most `GROUP` together."""
    rest = iter(values)
    while group := list(islice(rest, GROUP)):
        yield group


async def apply(threads: Executor, work: Callable[[T], R], group: list[T], size_bytes: int) -> list[R]:
    """Return what `work` makes of each value of a group, in a thread when there is much to do."""
    if size_bytes <= _LARGE_BYTES:
        return [work(value) for value in group]
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: [work(value) for value in group])
