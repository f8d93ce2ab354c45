"""The vector index: partitions that start flat and become graphs, behind `ports.VectorIndex`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.catalogue import Catalogue
from cacheproxy.index.guard import Shape, check_vector
from cacheproxy.index.restore import Restoration
from cacheproxy.index.shelf import Written, name_of
from cacheproxy.index.snapshot import Generation, discard
from cacheproxy.index.upkeep import Upkeep
from cacheproxy.index.worker import Worker
from cacheproxy.model import Candidate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from cacheproxy import settings
    from cacheproxy.index.restore import Row
    from cacheproxy.index.shelf import Found, Graph, View
    from cacheproxy.model import Partition
    from cacheproxy.ports import Embedder

LOOP_ROWS = 2048
"""Flat rows that are searched on the event loop (about 0.1 ms); more go to the index thread."""
DRIFT = 64
"""A graph is written again when more than one in this many entries changed; fewer are made good from the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStats:
    """Figures for metrics.

    `dead` counts dropped vectors that a graph still holds, `tail` rows that are searched flat, `due` partitions that
    upkeep works on or soon will. `bytes` is an estimate.
    """

    partitions: int
    graphs: int
    live: int
    dead: int
    tail: int
    due: int
    merged_rows: int
    rebuilds: int
    failures: int
    snapshots: int
    snapshot_refused: int
    bytes: int


class PartitionedIndex:
    """Nearest neighbours for one encoder epoch, in memory, searched inside one partition at a time.

    A partition starts as flat rows that are searched exactly on the event loop. Above `flat_limit` rows it gets a
    graph, which only the index thread touches; new rows stay flat beside it, findable at once, until upkeep has
    merged them, a few at a time.
    """

    def __init__(self, config: settings.Index, *, dim: int, epoch: str) -> None:
        self._shape = Shape(
            dim=dim,
            m=config.m,
            ef_construction=config.ef_construction,
            ef_search=config.ef_search,
            components=config.components if config.vectors == "int8" and config.components < dim else 0,
        )
        self._epoch = epoch
        self._catalogue = Catalogue(self._shape.form)
        self._worker = Worker("index")
        self._files = Worker("index-files")
        self._upkeep = Upkeep(self._catalogue, self._worker, self._shape, config.flat_limit)
        self._saving = asyncio.Lock()
        self._restoration: Restoration | None = None
        self._closed = False
        self._snapshots = 0
        self._refused = 0

    async def __aenter__(self) -> PartitionedIndex:
        """Start upkeep."""
        self._upkeep.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    async def aclose(self) -> None:
        """Stop upkeep, wait for the threads. Every later call but `health` raises IndexUnavailable or does nothing."""
        self._closed = True
        await self._upkeep.aclose()
        await self._worker.aclose()
        await self._files.aclose()

    @property
    def epoch(self) -> str:
        """The epoch of its vectors."""
        return self._epoch

    def alike(self, one: NDArray[np.float32], other: NDArray[np.float32], epoch: str) -> float:
        """Return the cosine of two vectors of shape (dim,); -1 in another epoch."""
        return float(np.dot(one, other)) if epoch == self._epoch else -1.0

    @property
    def waiting(self) -> int:
        """Return 0: what was added can be found."""
        return 0

    def encoder(self, epoch: str | None) -> Embedder | None:
        """Return None: it is searched by the vectors that it was given."""
        return None

    def __contains__(self, entry_id: str) -> bool:
        """Whether an entry can be found."""
        return entry_id in self._catalogue

    def __len__(self) -> int:
        """Count live entries over all partitions."""
        return len(self._catalogue)

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        return "the index is closed" if self._closed else self._upkeep.health()

    async def search(self, partition: Partition, vector: NDArray[np.float32], k: int) -> list[Candidate]:
        """Return at most `k` candidates, closest first; none for an unknown partition.

        Raises IndexUnavailable for a vector of wrong dtype, shape, norm or with a non-finite value, and when closed.
        """
        self._check(vector)
        shelf = self._catalogue.shelves.get(partition)
        if shelf is None or k <= 0:
            return []
        view = shelf.view()
        if view.graph is None and view.rows <= LOOP_ROWS:
            found = view.nearest(vector, k)
        else:
            found = await self._look(view, vector, k)
        # Read the names only now, on the loop: what was dropped while the search ran has none any more.
        named = [(name_of(holder, slot), cosine) for holder, slot, cosine in found]
        named.sort(key=_by_cosine, reverse=True)
        return [Candidate(entry_id, cosine) for entry_id, cosine in named if entry_id is not None][:k]

    async def _look(self, view: View, vector: NDArray[np.float32], k: int) -> list[Found]:
        try:
            return await self._worker.run(view.nearest, vector.copy(), k)
        except IndexUnavailable:
            if view.graph is not None and not self._closed:
                view.graph.broken = True  # the vector is sound, so the graph is not: rebuild it
                self._upkeep.wake(view.shelf)
            raise

    def add(
        self,
        partition: Partition,
        entry_id: str,
        vector: NDArray[np.float32],
        sought: tuple[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Make an entry findable at once, replacing an entry of the same id. Never blocks. It is not sought otherwise.

        Raises IndexUnavailable as `search`, and for a partition of another epoch.
        """
        self._check(vector)
        if partition.epoch != self._epoch:
            raise IndexUnavailable("the vector is of another encoder epoch than the index")
        self._upkeep.wake(self._catalogue.put(partition, entry_id, vector))

    def remove(self, entry_ids: Collection[str]) -> None:
        """Forget entries; unknown ids are ignored. No later search returns them. Some microseconds an id."""
        self._drop(entry_ids)

    def erase(self, entry_ids: Collection[str], *, scrub: bool = True) -> int:
        """Forget entries as `remove` does, with `scrub` their vectors by and by; return how many were known.

        Graphs that held one are then left out of every snapshot from the next one on, and rebuilt without it.
        """
        return self._drop(entry_ids, soil=scrub)

    async def scrub(self, directory: Path) -> None:
        """Leave no erased vector on disk: once this returns, no snapshot holds one. Rebuilds go on behind it.

        Raises IndexUnavailable when the disk refuses.
        """
        async with self._saving:
            await self._files.run(discard, directory)
        await self.save(directory)

    def _drop(self, entry_ids: Collection[str], *, soil: bool = False) -> int:
        dropped = 0
        for entry_id in entry_ids:
            shelf = self._catalogue.drop(entry_id)
            if shelf is not None:
                dropped += 1
                if soil and shelf.graph is not None:
                    shelf.graph.soil()
                self._upkeep.wake(shelf)
        if self._restoration is not None:
            self._restoration.removed.update(entry_ids)
        return dropped

    def stats(self) -> IndexStats:
        """Return the present figures."""
        graphs = self._catalogue.graphs.values()
        rows, live = sum(graph.rows for graph in graphs), sum(len(graph.ids) for graph in graphs)
        tail = len(self._catalogue) - live
        return IndexStats(
            partitions=len(self._catalogue.shelves),
            graphs=len(graphs),
            live=len(self._catalogue),
            dead=rows - live,
            tail=tail,
            due=self._upkeep.due,
            merged_rows=self._upkeep.tally.merged_rows,
            rebuilds=self._upkeep.tally.rebuilds,
            failures=self._upkeep.tally.failures,
            snapshots=self._snapshots,
            snapshot_refused=self._refused,
            bytes=tail * self._shape.form.dtype.itemsize + rows * self._shape.graph_bytes,
        )

    async def save(self, directory: Path) -> None:
        """Write a new snapshot generation and make it current. Searches and merges go on meanwhile.

        Only graphs are written, one at a time: copied on the index thread, written on another. Graphs that still hold
        an erased vector are left out, and rebuilt. Raises IndexUnavailable when the disk refuses; the generation before
        then stays current.
        """
        async with self._saving:
            generation = await self._files.run(Generation, directory)
            written: list[tuple[Graph, Written]] = []
            for partition, graph in list(self._catalogue.graphs.items()):
                if graph.unclean:
                    self._renew(partition, graph)
                elif graph.ids:
                    written.append((graph, await self._write(generation, partition, graph)))
            await self._files.run(generation.commit, self._epoch, self._shape.dim)
            for graph, file in written:
                graph.written = file
            self._snapshots += 1

    def _renew(self, partition: Partition, graph: Graph) -> None:
        graph.broken = True
        shelf = self._catalogue.shelves.get(partition)
        if shelf is not None:
            self._upkeep.wake(shelf)

    async def _write(self, generation: Generation, partition: Partition, graph: Graph) -> Written:
        known = graph.written
        if known is not None and (graph.changes - known.changes) * DRIFT <= graph.rows:
            path = await self._files.run(generation.link, known.path)
            if path is not None:
                return Written(path, known.changes)
        changes = graph.changes
        state = await self._worker.run(graph.guard.state)
        ids = dict(graph.ids)  # after the copy: what was dropped in between is not named
        return Written(await self._files.run(generation.add, partition, state, ids), changes)

    async def restore(self, directory: Path | None, rows: AsyncIterator[Row]) -> None:
        """Fill the index from the store's rows, taking over the graphs of the last snapshot where both agree.

        Without a directory there is none.

        An entry of a snapshot counts only once a row with the same id and the same vector confirmed it; the others are
        dropped. Rows that no whole snapshot holds are searched flat at once and merged in the background. The index
        may be used meanwhile: what was added or removed since the start wins over a row. Raises what `rows` raises.
        """
        restoration = self._restoration = Restoration(self._catalogue, self._files, self._shape, self._epoch)
        try:
            with self._upkeep.paused():
                await restoration.run(directory, rows)
        finally:
            self._restoration = None
            self._refused += restoration.refused_files

    def _check(self, vector: object) -> None:
        if self._closed:
            raise IndexUnavailable("the index is closed")
        check_vector(vector, self._shape.dim)


def _by_cosine(item: tuple[str | None, float]) -> float:
    return item[1]
