"""A file of what was learnt, and the one thread that uses it: the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from cacheproxy.datafile import connect, unusable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cacheproxy.datafile import Form
    from cacheproxy.errors import PartUnavailable

T = TypeVar("T")


class FileThread:
    """Does work on one sqlite file, a piece at a time, between `open` and `close`; `failed` is what it raises."""

    def __init__(self, path: Path, form: Form, failed: Callable[[str], PartUnavailable]) -> None:
        self._path = path
        self._form = form
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=path.stem)
        self._connection: sqlite3.Connection | None = None

    async def open(self, load: Callable[[sqlite3.Connection], T]) -> T:
        """Open the file and return what `load` makes of it. Raises ConfigError where either fails."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._open, load)
        except BaseException:
            self._thread.shutdown()
            raise

    async def do(self, work: Callable[[sqlite3.Connection], T], *, timeout_s: float, failure: str) -> T:
        """Return what `work` returns. When it fails, is late, or the file is closed, raises what says `failure`."""
        if self._connection is None:
            raise self._failed(failure)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._connection)
        except (sqlite3.Error, TimeoutError) as exc:
            raise self._failed(failure) from exc

    async def close(self) -> None:
        """Close the file after what was begun."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown()

    def _open(self, load: Callable[[sqlite3.Connection], T]) -> T:
        with contextlib.ExitStack() as on_failure:
            connection = connect(self._path, self._form)
            on_failure.callback(connection.close)
            try:
                loaded = load(connection)
            except sqlite3.Error as exc:
                raise unusable(self._path, self._form, exc) from exc
            on_failure.pop_all()
        self._connection = connection
        return loaded
