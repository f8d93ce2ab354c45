"""Which entry lies where: the bookkeeping of all partitions, pure memory, used from the event loop only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.index.block import Block
from cacheproxy.index.shelf import Graph, Shelf

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.index.block import Batch
    from cacheproxy.index.rows import Form
    from cacheproxy.model import Partition


class Catalogue:
    """Every shelf by its partition, every entry's place. An id lies in one place; an empty shelf is not kept."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._places: dict[str, tuple[Shelf, Block | Graph, int]] = {}
        self.shelves: dict[Partition, Shelf] = {}
        self.graphs: dict[Partition, Graph] = {}

    def __len__(self) -> int:
        """Count live entries."""
        return len(self._places)

    def __contains__(self, entry_id: str) -> bool:
        """Whether an entry is known."""
        return entry_id in self._places

    def put(self, partition: Partition, entry_id: str, vector: NDArray[np.float32]) -> Shelf:
        """Lay a checked vector on its partition's shelf, in place of any entry of the same id; return the shelf."""
        self.drop(entry_id)
        shelf = self.shelf(partition)
        if not shelf.blocks or shelf.blocks[-1].full:
            shelf.blocks.append(Block(self._form))
        block = shelf.blocks[-1]
        self._places[entry_id] = (shelf, block, block.append(entry_id, vector))
        shelf.tail += 1
        return shelf

    def shelf(self, partition: Partition) -> Shelf:
        """Return a partition's shelf, made when missing; the caller puts something on it."""
        found = self.shelves.get(partition)
        if found is None:
            found = self.shelves[partition] = Shelf(partition)
        return found

    def drop(self, entry_id: str) -> Shelf | None:
        """Forget an entry; return the shelf it was on, or None when it is not known."""
        place = self._places.pop(entry_id, None)
        if place is None:
            return None
        shelf, holder, slot = place
        holder.drop(slot)
        if isinstance(holder, Graph):
            if not holder.ids:
                self.detach(shelf)
        else:
            shelf.tail -= 1
            if not holder.live:
                shelf.blocks.remove(holder)
            elif holder.sparse:
                self._compact(shelf, holder)
        if not len(shelf):
            self._discard(shelf)
        return shelf

    def attach(self, shelf: Shelf, graph: Graph) -> None:
        """Give a shelf its graph."""
        shelf.graph = self.graphs[shelf.key] = graph

    def detach(self, shelf: Shelf) -> None:
        """Take a graph with no live entry off its shelf."""
        shelf.graph = None
        self.graphs.pop(shelf.key, None)

    def settle(self, shelf: Shelf, graph: Graph, batch: Batch, labels: Sequence[int]) -> None:
        """Move a batch, which the graph has by now, out of its block; what was dropped meanwhile is dropped there."""
        if shelf.graph is not graph:
            return
        graph.rows += len(labels)
        graph.changes += len(labels)
        block = batch.block
        for slot, entry_id, label in zip(batch.slots, batch.ids, labels, strict=True):
            place = self._places.get(entry_id)
            if place is None or place[1] is not block or place[2] != slot:
                graph.drop(label)
                continue
            self.claim(shelf, graph, label, entry_id)
            shelf.tail -= 1
        if block in shelf.blocks:
            block.advance(batch.end)
            if not block.live:
                shelf.blocks.remove(block)

    def claim(self, shelf: Shelf, graph: Graph, label: int, entry_id: str) -> None:
        """Record that an entry lies in the graph, under a label."""
        graph.ids[label] = entry_id
        self._places[entry_id] = (shelf, graph, label)

    def _compact(self, shelf: Shelf, block: Block) -> None:
        compact = Block(self._form, capacity=block.live)
        for entry_id, vector in block.rows():
            self._places[entry_id] = (shelf, compact, compact.append(entry_id, vector))
        shelf.blocks[shelf.blocks.index(block)] = compact

    def _discard(self, shelf: Shelf) -> None:
        if self.shelves.get(shelf.key) is shelf:
            del self.shelves[shelf.key]
            self.graphs.pop(shelf.key, None)
