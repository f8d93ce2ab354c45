"""Embeddings of an operator's own texts, kept from one start to the next: a pack's examples are hundreds.

The file holds digests of the texts and vectors, no texts. It is a convenience: whatever is wrong with it, texts are
embedded anew. Callers' texts never go here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import structlog

from cacheproxy.model import Embedding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from cacheproxy.ports import Embedder

log = structlog.get_logger()

MOST = 50_000
"""Most embeddings kept: the oldest go, beyond it."""
_TOGETHER = 32
_SCOPE = "policies"
_NORM_ERROR = 1e-3
_SCHEMA = """
CREATE TABLE IF NOT EXISTS embeddings (
    n INTEGER PRIMARY KEY,
    epoch TEXT NOT NULL,
    text BLOB NOT NULL,
    unseen BLOB NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (epoch, text)
)
"""


class Examples:
    """Embeds an operator's texts by way of the file, a few at a time: requests wait in the same queue."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self._embedder = embedder
        self._path = path

    async def __call__(self, texts: Sequence[str]) -> list[Embedding]:
        """Return the embedding of each text. Raises EmbedderUnavailable."""
        known = await asyncio.to_thread(self._find, texts)
        missing = sorted({text for text in texts if text not in known}, key=len)  # alike in length go well together
        fresh: dict[str, Embedding] = {}
        for at in range(0, len(missing), _TOGETHER):
            some = missing[at : at + _TOGETHER]
            asked = (self._embedder.embed(text, scope=_SCOPE) for text in some)
            for text, seen in zip(some, await asyncio.gather(*asked, return_exceptions=True), strict=True):
                if isinstance(seen, BaseException):
                    raise seen
                fresh[text] = seen
        if fresh:
            await asyncio.to_thread(self._keep, fresh)
        known |= fresh
        return [known[text] for text in texts]

    def _find(self, texts: Sequence[str]) -> dict[str, Embedding]:
        epoch, dim, found = self._embedder.epoch, self._embedder.dim, {}
        try:
            with self._open() as connection:
                for text in texts:
                    query = "SELECT vector, unseen FROM embeddings WHERE epoch = ? AND text = ?"
                    row = connection.execute(query, (epoch, _digest(text))).fetchone()
                    if row is not None and (vector := _vector(row[0], dim)) is not None:
                        found[text] = Embedding(vector=vector, unseen=row[1])
        except (OSError, sqlite3.Error) as exc:
            log.info("examples_file_unused", reason=str(exc))
        return found

    def _keep(self, fresh: Mapping[str, Embedding]) -> None:
        rows = [
            (self._embedder.epoch, _digest(text), seen.unseen, seen.vector.astype("<f4").tobytes())
            for text, seen in fresh.items()
        ]
        try:
            with self._open() as connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO embeddings (epoch, text, unseen, vector) VALUES (?, ?, ?, ?)", rows
                )
                connection.execute("DELETE FROM embeddings WHERE n <= (SELECT max(n) FROM embeddings) - ?", (MOST,))
        except (OSError, sqlite3.Error) as exc:
            log.info("examples_file_unused", reason=str(exc))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        with contextlib.closing(sqlite3.connect(self._path, timeout=1.0)) as connection, connection:
            connection.execute(_SCHEMA)
            yield connection


def _vector(data: bytes, dim: int) -> np.ndarray[tuple[int], np.dtype[np.float32]] | None:
    """Return a vector, or None where these bytes are none of this encoder."""
    if len(data) != 4 * dim:
        return None
    vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
    return vector if abs(float(np.linalg.norm(vector)) - 1.0) < _NORM_ERROR else None


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()
