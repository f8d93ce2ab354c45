"""What one partition holds: flat blocks, and a graph once it is big."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cacheproxy.index.block import Block

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.index.block import Slice
    from cacheproxy.index.reduced import AnyGraph
    from cacheproxy.model import Partition

WORN_SHARE = 0.25
"""Share of dropped vectors above which a graph is rebuilt: hnswlib only flags them, so they stay in memory."""


@dataclass(slots=True, eq=False)
class Rebuild:
    """A graph's replacement in the making: `todo[done:]` are the labels still to copy."""

    guard: AnyGraph
    todo: Sequence[int]
    done: int = 0
    copied: int = 0
    clean: bool = True
    """False once something was erased that it may have copied before."""


@dataclass(frozen=True, slots=True)
class Written:
    """The snapshot file that holds a graph, and its `changes` at that time."""

    path: Path
    changes: int


@dataclass(slots=True, eq=False)
class Graph:
    """A guarded graph with the ids of its labels.

    Labels survive a rebuild, so only `guard` changes then. `changes` counts what a snapshot may lack. An `unclean`
    graph still holds an erased vector: it is in no snapshot until it is rebuilt.
    """

    guard: AnyGraph
    ids: dict[int, str] = field(default_factory=dict)
    rows: int = 0
    next_label: int = 0
    changes: int = 0
    broken: bool = False
    unclean: bool = False
    rebuild: Rebuild | None = None
    written: Written | None = None

    @property
    def worn(self) -> bool:
        """Whether it should be rebuilt."""
        return self.broken or self.rows - len(self.ids) > WORN_SHARE * self.rows

    def take_labels(self, count: int) -> range:
        """Return labels that were never used before."""
        first = self.next_label
        self.next_label += count
        return range(first, self.next_label)

    def replace(self) -> None:
        """Put the finished replacement in place; a search that is under way keeps the old one."""
        if self.rebuild is not None:
            self.guard, self.rows = self.rebuild.guard, self.rebuild.copied
            self.unclean = self.broken = self.unclean and not self.rebuild.clean
            self.rebuild = None
            self.changes += self.rows  # a snapshot of before still holds the vectors that are gone now

    def soil(self) -> None:
        """Note that something was erased: hnswlib only flags what it drops, so its vector is still in memory."""
        self.unclean = True
        if self.rebuild is not None:
            self.rebuild.clean = False

    def drop(self, label: int) -> None:
        """Forget a label, in the replacement too."""
        self.ids.pop(label, None)
        self.changes += 1
        self.guard.drop(label)
        if self.rebuild is not None:
            self.rebuild.guard.drop(label)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A shelf at one moment. With a graph it may be searched on the index thread only, without one on any thread."""

    shelf: Shelf
    slices: tuple[Slice, ...]
    rows: int
    graph: Graph | None
    guard: AnyGraph | None

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[Found]:
        """Return the closest of each part, in no order. Raises IndexUnavailable."""
        found: list[Found] = []
        for part in self.slices:
            found += [(part.block, slot, cosine) for slot, cosine in part.nearest(vector, k)]
        if self.graph is not None and self.guard is not None:
            found += [(self.graph, label, cosine) for label, cosine in self.guard.nearest(vector, k)]
        return found


class Shelf:
    """The rows of one partition.

    `tail` counts the live rows in blocks; `draining` is set while they move to the graph, `queued` while upkeep is due,
    `parked` after upkeep failed.
    """

    __slots__ = ("blocks", "draining", "graph", "key", "parked", "queued", "tail")

    def __init__(self, key: Partition) -> None:
        self.key = key
        self.blocks: list[Block] = []
        self.graph: Graph | None = None
        self.tail = 0
        self.draining = False
        self.queued = False
        self.parked = False

    def __len__(self) -> int:
        """Count live rows."""
        return self.tail + (len(self.graph.ids) if self.graph else 0)

    def view(self) -> View:
        """Return what a search reads. A row that moves from a block to the graph meanwhile is found in one of them."""
        return View(
            self,
            tuple([block.slice() for block in self.blocks]),
            self.tail,
            self.graph,
            self.graph.guard if self.graph else None,
        )


Found = tuple[Block | Graph, int, float]
"""Where a search found a row (a block's slot or a graph's label) and its cosine."""


def name_of(holder: Block | Graph, slot: int) -> str | None:
    """Return the id now under a slot or label, or None when it was dropped, moved or is not settled yet."""
    return holder.ids[slot] if isinstance(holder, Block) else holder.ids.get(slot)
