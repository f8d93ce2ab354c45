"""A named thread for work that must leave the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from cacheproxy.errors import IndexUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs calls on one thread, in the order they were asked for."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call on the thread and return its result. Raises what it raises, and IndexUnavailable once closed.

        A caller that is cancelled leaves; a call that has begun runs to its end.
        """
        try:
            future = self._executor.submit(call, *args, **kwargs)
        except RuntimeError as exc:
            raise IndexUnavailable("the index is closed") from exc
        return await asyncio.wrap_future(future)

    async def aclose(self) -> None:
        """Wait for the calls that were asked for, then end the thread."""
        await asyncio.to_thread(self._executor.shutdown)
