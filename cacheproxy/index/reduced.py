"""A graph over fewer components: it proposes, and the codes of the whole vectors say how near each proposal is.

hnswlib holds float32 only, so that what can be saved are components. Those that matter most are found by principal
components of the vectors that a graph begins with, not centred, since what is compared are angles at the origin. What
is left out of a proposal is left out of recall, never of a cosine.
"""

from __future__ import annotations

import threading
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.guard import Guard, Shape, check_rows, check_vector
from cacheproxy.index.rows import room

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cacheproxy.index.block import Slice
    from cacheproxy.index.guard import GraphState, Taker

SAMPLE_ROWS = 4096
"""Most vectors that components are found from: a few milliseconds, and some tens for the components themselves."""
PIECE_ROWS = 1024
"""Rows that lie together: more never move, so nothing is copied when a graph grows."""
_SMALLEST = 1e-12


def new_graph(shape: Shape, capacity: int, begins_with: Sequence[Slice]) -> AnyGraph:
    """Return an empty graph for a partition that holds these rows."""
    if not shape.components:
        return Guard(shape, capacity=capacity)
    some = [part.block.form.vectors(part.matrix) for part in begins_with]
    return Reduced(shape, axes_of(np.concatenate(some)[:SAMPLE_ROWS], shape.components), capacity=capacity)


def graph_of(shape: Shape, state: GraphState) -> AnyGraph:
    """Return the graph that a state is of. Raises IndexUnavailable when it does not fit."""
    if state.axes is None:
        return Guard(shape, state=state)
    return Reduced(shape, state.axes, state=state)


def axes_of(rows: NDArray[np.float32], components: int) -> NDArray[np.float32]:
    """Return the principal components of vectors of shape (n, dim), as rows of shape (components, dim)."""
    wide = rows.astype(np.float64)
    _, axes = np.linalg.eigh(wide.T @ wide)
    return np.ascontiguousarray(axes[:, ::-1][:, :components].T, dtype=np.float32)


class Reduced:
    """A graph of unit vectors under integer labels, as `guard.Guard`, of `shape.components` of their components."""

    def __init__(
        self, shape: Shape, axes: NDArray[np.float32], *, capacity: int = 1, state: GraphState | None = None
    ) -> None:
        """Start empty with room for `capacity`, or from a state. Raises IndexUnavailable when that does not fit."""
        if state is not None and (problem := state.problem(shape)):
            raise IndexUnavailable(f"a graph's state disagrees with the index: {problem}")
        self._shape = shape
        self._axes = np.array(axes)
        self._turn = threading.Lock()
        self._pieces: list[NDArray[Any]] = []
        self._labels = array("Q")
        inner = None if state is None else replace(state, axes=None, codes=())
        self._graph = Guard(shape.graph, capacity=capacity, state=inner)
        if state is not None:
            self._keep(np.concatenate(state.codes), state.labels().tolist())

    @property
    def count(self) -> int:
        """Elements in memory, deleted ones too."""
        return self._graph.count

    @property
    def live(self) -> int:
        """Elements that a search may return."""
        return self._graph.live

    def drop(self, label: int) -> None:
        """Forget a label before the next search. Safe from any thread, never waits."""
        self._graph.drop(label)

    def append(self, rows: NDArray[np.float32], labels: Sequence[int]) -> None:
        """Add rows of shape (n, dim) under new labels."""
        check_rows(rows, self._shape.dim)
        with self._turn:
            self._graph.append(self._reduced(rows), labels)
            self._keep(self._shape.form.kept(rows), labels)

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """Return at most `k` (label, cosine), closest first; none for an empty graph."""
        check_vector(vector, self._shape.dim)
        with self._turn:
            proposed = self._graph.nearest(self._reduced(vector[None])[0], max(k, self._shape.ef_search))
            labels = [label for label, _ in proposed]
            kept = self._at(labels)
        cosines = np.clip(self._shape.form.cosines(kept, vector), -1.0, 1.0)
        return [(labels[place], float(cosines[place])) for place in np.argsort(-cosines, kind="stable")[:k].tolist()]

    def copy_to(self, other: Taker, labels: Sequence[int]) -> int:
        """Append those of these ascending labels that are live here to another graph; return how many."""
        with self._turn:
            live = self._graph.alive(labels)
            rows = self._shape.form.vectors(self._at(live))
        if live:
            other.append(rows, live)
        return len(live)

    def successor(self, capacity: int) -> Reduced:
        """Return an empty graph to copy this one to; its components are those of what is live here now."""
        with self._turn:
            step = max(1, len(self._labels) // SAMPLE_ROWS)
            live = self._graph.alive(self._labels[::step])
            sample = self._shape.form.vectors(self._at(live))
        axes = axes_of(sample, self._shape.components) if live else self._axes
        return Reduced(self._shape, axes, capacity=capacity)

    def state(self) -> GraphState:
        """Copy the graph's memory; codes are not copied, since they never change. Holds the GIL as `Guard.state`."""
        with self._turn:
            whole, rest = divmod(len(self._labels), PIECE_ROWS)
            codes = [*self._pieces[:whole], *([self._pieces[whole][:rest]] if rest else [])]
            return replace(self._graph.state(), axes=self._axes, codes=tuple(codes))

    def _keep(self, kept: NDArray[Any], labels: Sequence[int]) -> None:
        done = 0
        while done < len(kept):
            start = len(self._labels) % PIECE_ROWS
            if not start:
                self._pieces.append(room(PIECE_ROWS, self._shape.form))
            some = kept[done : done + PIECE_ROWS - start]
            self._pieces[-1][start : start + len(some)] = some
            self._labels.extend(labels[done : done + len(some)])
            done += len(some)

    def _at(self, labels: Sequence[int]) -> NDArray[Any]:
        """Return what is kept under labels that are here."""
        found = np.empty(len(labels), dtype=self._shape.form.dtype)
        places = np.searchsorted(np.frombuffer(self._labels, dtype=np.uint64), np.asarray(labels, dtype=np.uint64))
        for at, place in enumerate(places.tolist()):
            found[at] = self._pieces[place // PIECE_ROWS][place % PIECE_ROWS]
        return found

    def _reduced(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return unit vectors of shape (n, components); what has no share in any component becomes the first one."""
        made = np.vecdot(self._axes, rows[:, None])
        norms = np.linalg.norm(made, axis=1, keepdims=True)
        made[norms[:, 0] <= _SMALLEST] = np.eye(1, made.shape[1])
        reduced: NDArray[np.float32] = made / np.where(norms <= _SMALLEST, np.float32(1.0), norms)
        return reduced


AnyGraph = Guard | Reduced
"""What a shelf may have."""
