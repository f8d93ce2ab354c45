"""Start from a snapshot: whole graphs are loaded, then every entry is checked against the store's rows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.guard import check_vector
from cacheproxy.index.reduced import graph_of
from cacheproxy.index.sealed import SnapshotRefused
from cacheproxy.index.shelf import Graph, Written
from cacheproxy.index.snapshot import current, files_of, read_graph

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.index.catalogue import Catalogue
    from cacheproxy.index.guard import Shape
    from cacheproxy.index.worker import Worker
    from cacheproxy.model import Partition

CHUNK_ROWS = 512
"""Rows compared at a time: about a millisecond."""

log = structlog.get_logger()

Row = tuple["Partition", str, "NDArray[np.float32]"]


@lru_cache(maxsize=4)
def _keys(words: int) -> NDArray[np.uint64]:
    # Random for each process: no one can prepare two vectors of equal digest.
    return np.random.default_rng().integers(2**64, size=words, dtype=np.uint64) | np.uint64(1)


def digests(kept: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a 64-bit digest of the bits of each vector, as it is kept, shape (n,). Comparable in this process only."""
    parts = [_digests(np.ascontiguousarray(kept[i : i + CHUNK_ROWS])) for i in range(0, len(kept), CHUNK_ROWS)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def _digests(kept: NDArray[Any]) -> NDArray[np.uint64]:
    words = kept.view(np.uint32 if kept.dtype == np.float32 else np.uint8).reshape(len(kept), -1)
    found: NDArray[np.uint64] = np.vecdot(words.astype(np.uint64), _keys(words.shape[1]))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A graph from a snapshot whose entries are not confirmed yet: by id, the label and the vector's digest."""

    partition: Partition
    graph: Graph
    known: dict[str, tuple[int, int]]
    labels: list[int]


def load(path: Path, *, epoch: str, shape: Shape) -> Loaded:
    """Read one graph. Blocks. Raises SnapshotRefused."""
    stored = read_graph(path, epoch=epoch, shape=shape)
    labels = stored.state.labels().tolist()
    deleted = stored.state.deleted().tolist()
    marks = digests(stored.state.kept()).tolist()
    known = {
        entry_id: (label, mark)
        for entry_id, label, mark, gone in zip(stored.ids, labels, marks, deleted, strict=True)
        if entry_id is not None and not gone
    }
    try:
        guard = graph_of(shape, stored.state)
    except IndexUnavailable as exc:
        raise SnapshotRefused(path, "hnswlib") from exc
    graph = Graph(guard, rows=len(labels), next_label=max(labels) + 1, written=Written(path, 0))
    return Loaded(stored.partition, graph, known, labels)


class Restoration:
    """One start: reads the snapshot, then takes the store's rows. Used on the event loop.

    `removed` collects the ids that were removed while it runs; `refused_files` counts snapshot files that were not
    usable.
    """

    def __init__(self, catalogue: Catalogue, files: Worker, shape: Shape, epoch: str) -> None:
        self._catalogue = catalogue
        self._files = files
        self._shape = shape
        self._epoch = epoch
        self._loaded: dict[Partition, Loaded] = {}
        self._confirmed = 0
        self._added = 0
        self._refused_rows = 0
        self.removed: set[str] = set()
        self.refused_files = 0

    async def run(self, directory: Path | None, rows: AsyncIterator[Row]) -> None:
        """Fill the catalogue. Raises what `rows` raises."""
        for path in await self._paths(directory) if directory is not None else ():
            try:
                loaded = await self._files.run(load, path, epoch=self._epoch, shape=self._shape)
            except SnapshotRefused as exc:
                self._refuse(path, exc)
            else:
                self._loaded[loaded.partition] = loaded
        try:
            await self._take_all(rows)
        finally:
            orphans = self._finish()
        log.info(
            "index_restored",
            confirmed=self._confirmed,
            added=self._added,
            orphans=orphans,
            refused_rows=self._refused_rows,
            refused_files=self.refused_files,
        )

    async def _paths(self, directory: Path) -> list[Path]:
        try:
            generation = await self._files.run(current, directory)
            if generation is None:
                return []
            return await self._files.run(files_of, generation, epoch=self._epoch, dim=self._shape.dim)
        except SnapshotRefused as exc:
            self._refuse(directory, exc)
            return []

    def _refuse(self, path: Path, exc: SnapshotRefused) -> None:
        self.refused_files += 1
        log.warning("snapshot_refused", file=path.name, reason=exc.reason)

    async def _take_all(self, rows: AsyncIterator[Row]) -> None:
        chunk: list[Row] = []
        async for row in rows:
            try:
                check_vector(row[2], self._shape.dim)
            except IndexUnavailable:
                self._refused_rows += 1
                continue
            chunk.append(row)
            if len(chunk) == CHUNK_ROWS:
                self._take(chunk)
                chunk = []
                await asyncio.sleep(0)  # rows may come from memory without ever giving way
        if chunk:
            self._take(chunk)

    def _take(self, chunk: list[Row]) -> None:
        marks = digests(self._shape.form.kept(np.stack([vector for _, _, vector in chunk]))).tolist()
        for (partition, entry_id, vector), mark in zip(chunk, marks, strict=True):
            if partition.epoch != self._epoch or entry_id in self.removed or entry_id in self._catalogue:
                continue  # of another encoder, or older than what was done since the start
            loaded = self._loaded.get(partition)
            label, expected = loaded.known.get(entry_id, (0, None)) if loaded else (0, None)
            if loaded is None or mark != expected:
                self._catalogue.put(partition, entry_id, vector)
                self._added += 1
                continue
            shelf = self._catalogue.shelf(partition)
            if shelf.graph is None:
                self._catalogue.attach(shelf, loaded.graph)
            self._catalogue.claim(shelf, loaded.graph, label, entry_id)
            self._confirmed += 1

    def _finish(self) -> int:
        """Drop what no row confirmed; return how many entries that were."""
        orphans = 0
        for loaded in self._loaded.values():
            orphans += sum(label not in loaded.graph.ids for label, _ in loaded.known.values())
            if self._catalogue.graphs.get(loaded.partition) is not loaded.graph:
                continue
            for label in loaded.labels:
                if label not in loaded.graph.ids:
                    loaded.graph.drop(label)
        return orphans
