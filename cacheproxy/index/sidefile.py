"""The side file: vectors of kept entries as encoders with changed layers see them, by epoch and id.

The store keeps the vectors of the encoder that is configured; another encoder's cannot be computed from them, only from
texts, and that takes milliseconds each. So they are made once and kept here, beside the store: a restart, and a change
that was cut short, go on from what is there. An entry's id is a digest of all that its vector depends on, so that what
is here for an id is right for as long as the id is kept.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import structlog

from cacheproxy.datafile import Form, check_whole, empty_log, files_aside, moved_aside
from cacheproxy.errors import ConfigError, DamagedFile, IndexUnavailable
from cacheproxy.filethread import FileThread

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Vectors = Mapping[str, NDArray[np.float32]]

FILE = "tuned.sqlite3"
FORM = Form(
    what="vectors beside the store",
    mark=0x63707476,  # `cptv`
    version=1,
    pragmas=("journal_mode = WAL", "secure_delete = ON", "synchronous = NORMAL"),
    schema="""
PRAGMA page_size = 16384;
CREATE TABLE vectors (
    epoch TEXT NOT NULL,
    id TEXT NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (id, epoch)
);
""",
)
_TIMEOUT_S = 10.0
_SCRUB_TIMEOUT_S = 60.0
_FAILURE = "the vectors beside the store cannot be used; see the log and the disk"
_PAGE = 1000

log = structlog.get_logger()


class SideFile:
    """Vectors of changed encoders on disk. Use it as an async context manager; all raise IndexUnavailable.

    Work is done in the order in which it was asked for: what is forgotten after it was kept is gone.
    """

    def __init__(self, path: Path) -> None:
        self.set_aside = False
        """Whether opening it found it damaged: it was renamed, and this one is empty."""
        self._path = path
        self._file = FileThread(path, FORM, IndexUnavailable)

    async def __aenter__(self) -> SideFile:
        """Open the file, or a new one where it is damaged. Raises ConfigError for any other reason to fail."""
        try:
            await self._file.open(check_whole)
        except DamagedFile as exc:
            await asyncio.to_thread(_move_aside, self._path, exc)
            self.set_aside = True
            self._file = FileThread(self._path, FORM, IndexUnavailable)
            await self._file.open(check_whole)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._file.close()

    async def read(self, epoch: str, ids: Sequence[str], dim: int) -> dict[str, NDArray[np.float32]]:
        """Return the vectors of an epoch that are there of some ids; what has another length counts as missing."""
        found = await self._file.do(partial(_read, epoch=epoch, ids=ids), timeout_s=_TIMEOUT_S, failure=_FAILURE)
        return {one: np.frombuffer(raw, dtype="<f4") for one, raw in found if len(raw) == 4 * dim}

    async def change(self, epoch: str, kept: Vectors, gone: Collection[str]) -> None:
        """Forget ids in every epoch, then keep vectors of one."""
        work = partial(_change, epoch=epoch, kept=kept, gone=gone)
        await self._file.do(work, timeout_s=_TIMEOUT_S, failure=_FAILURE)

    async def only(self, epochs: Collection[str]) -> None:
        """Forget all epochs but these."""
        await self._file.do(partial(_only, epochs=epochs), timeout_s=_SCRUB_TIMEOUT_S, failure=_FAILURE)

    async def page(self, after: str) -> list[str]:
        """Return ids that anything is kept of, in their order, from the first one after `after` on; [] at the end."""
        return await self._file.do(partial(_page, after=after), timeout_s=_TIMEOUT_S, failure=_FAILURE)

    async def scrub(self) -> None:
        """Leave nothing of what was forgotten in the file; say where one that was moved aside may still hold it."""
        await self._file.do(empty_log, timeout_s=_SCRUB_TIMEOUT_S, failure=_FAILURE)
        if aside := await asyncio.to_thread(files_aside, self._path):
            log.warning("side_vectors_aside_remain", files=aside, what="may hold what was erased: remove them")


def _move_aside(path: Path, exc: DamagedFile) -> None:
    try:
        aside = moved_aside(path, time.time())
    except OSError as failure:
        raise ConfigError(f"{path}: is damaged and cannot be renamed ({failure.strerror}); move it aside") from failure
    log.error("side_vectors_set_aside", file=str(path), moved_to=str(aside), reason=exc.message)


def _read(connection: sqlite3.Connection, epoch: str, ids: Sequence[str]) -> list[tuple[str, bytes]]:
    marks = ", ".join("?" * len(ids))
    told = f"SELECT id, vector FROM vectors WHERE epoch = ? AND id IN ({marks})"
    return connection.execute(told, (epoch, *ids)).fetchall()


def _change(connection: sqlite3.Connection, epoch: str, kept: Vectors, gone: Collection[str]) -> None:
    with connection:
        connection.executemany("DELETE FROM vectors WHERE id = ?", ((one,) for one in gone))
        rows = ((epoch, one, np.asarray(vector, dtype="<f4").tobytes()) for one, vector in kept.items())
        connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)


def _only(connection: sqlite3.Connection, epochs: Collection[str]) -> None:
    marks = ", ".join("?" * len(epochs))
    with connection:
        connection.execute(f"DELETE FROM vectors WHERE epoch NOT IN ({marks})", tuple(epochs))
    empty_log(connection)


def _page(connection: sqlite3.Connection, after: str) -> list[str]:
    told = "SELECT DISTINCT id FROM vectors WHERE id > ? ORDER BY id LIMIT ?"
    return [one for (one,) in connection.execute(told, (after, _PAGE))]
