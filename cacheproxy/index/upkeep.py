"""Background work on partitions: rows move into graphs and worn graphs are rebuilt, a few vectors at a time."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheproxy.index.guard import capacity_for
from cacheproxy.index.reduced import new_graph
from cacheproxy.index.shelf import Graph, Rebuild

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cacheproxy.index.catalogue import Catalogue
    from cacheproxy.index.guard import Shape
    from cacheproxy.index.reduced import AnyGraph
    from cacheproxy.index.shelf import Shelf
    from cacheproxy.index.worker import Worker

STEP_ROWS = 4
"""Vectors a graph takes per step: a search queued behind one waits some milliseconds (1 ms a vector at 100,000)."""
TAIL_ROWS = 256
"""Rows beside a graph above which they are merged into it."""

log = structlog.get_logger()


@dataclass(slots=True)
class Tally:
    """What upkeep has done since the start."""

    merged_rows: int = 0
    rebuilds: int = 0
    failures: int = 0


class Upkeep:
    """One task that takes turns among the shelves that are due, so that no partition waits for another's rebuild."""

    def __init__(self, catalogue: Catalogue, worker: Worker, shape: Shape, flat_limit: int) -> None:
        self._catalogue = catalogue
        self._worker = worker
        self._shape = shape
        self._flat_limit = flat_limit
        self._due: asyncio.Queue[Shelf] = asyncio.Queue()  # bounded: a shelf is in it once at most
        self._task: asyncio.Task[None] | None = None
        self._paused = False
        self._busy = False
        self.tally = Tally()

    def start(self) -> None:
        """Begin on the running loop."""
        self._task = asyncio.create_task(self._run(), name="index-upkeep")

    async def aclose(self) -> None:
        """Stop after the step under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def health(self) -> str:
        """Return "" while the task runs, or what ended it."""
        if self._task is None or not self._task.done():
            return ""
        return "index upkeep has stopped"

    def wake(self, shelf: Shelf) -> None:
        """Look at a shelf that changed; cheap when nothing is due."""
        if not self._paused and not shelf.queued and self._is_due(shelf):
            shelf.queued = True
            self._due.put_nowait(shelf)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let no new work become due inside the block; look at every shelf after it."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            for shelf in list(self._catalogue.shelves.values()):
                self.wake(shelf)

    @property
    def due(self) -> int:
        """Partitions that wait for work or are being worked on."""
        return self._due.qsize() + self._busy

    def _is_due(self, shelf: Shelf) -> bool:
        if shelf.parked or self._catalogue.shelves.get(shelf.key) is not shelf:
            return False
        graph = shelf.graph
        if graph is not None and (graph.worn or graph.rebuild is not None):
            return True
        limit = self._flat_limit if graph is None else min(TAIL_ROWS, self._flat_limit)
        shelf.draining = shelf.tail > (0 if shelf.draining else limit)
        return shelf.draining

    async def _run(self) -> None:
        while True:
            shelf = await self._due.get()
            self._busy = True
            try:
                if self._is_due(shelf):
                    await self._step(shelf)
            except Exception:  # the worker must survive: one partition stays as it is, still searched
                self.tally.failures += 1
                shelf.parked = True
                log.exception("index_upkeep_failed", category=shelf.key.category, rows=len(shelf))
            finally:
                shelf.queued = self._busy = False
            self.wake(shelf)

    async def _step(self, shelf: Shelf) -> None:
        graph = shelf.graph
        if graph is None:
            capacity, begins_with = capacity_for(shelf.tail), shelf.view().slices
            guard = await self._worker.run(new_graph, self._shape, capacity, begins_with)
            if self._is_due(shelf) and shelf.graph is None:
                self._catalogue.attach(shelf, Graph(guard))
        elif graph.rebuild is not None or graph.worn:
            await self._rebuild(graph)
        else:
            await self._merge(shelf, graph)

    async def _merge(self, shelf: Shelf, graph: Graph) -> None:
        batch = shelf.blocks[0].front(STEP_ROWS)
        labels = graph.take_labels(len(batch.ids))
        if batch.ids:
            await self._worker.run(graph.guard.append, batch.rows, labels)
        self._catalogue.settle(shelf, graph, batch, labels)
        self.tally.merged_rows += len(labels)

    async def _rebuild(self, graph: Graph) -> None:
        rebuild = graph.rebuild
        if rebuild is None:
            todo = sorted(graph.ids)
            successor: Callable[[int], AnyGraph] = graph.guard.successor
            guard = await self._worker.run(successor, capacity_for(len(todo)))
            graph.rebuild = Rebuild(guard, todo)
            return
        step = rebuild.todo[rebuild.done : rebuild.done + STEP_ROWS]
        labels = [label for label in step if label in graph.ids]
        rebuild.copied += await self._worker.run(graph.guard.copy_to, rebuild.guard, labels)
        rebuild.done += len(step)
        if rebuild.done >= len(rebuild.todo):
            graph.replace()
            self.tally.rebuilds += 1
