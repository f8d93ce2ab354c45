"""The one module that touches hnswlib, and every check that hnswlib leaves out.

hnswlib 0.8 aborts the process on a short query, silently reads the first values of a long one, keeps NaN, fails when
asked for more neighbours than it can reach, crashes when resized under a search, and holds the GIL while it saves or
loads a file. So its index is never handed out: this module checks every vector, caps every count, lets nothing else
happen while it grows, and takes the graph's memory out and in through hnswlib's state dictionary: a copy in memory,
which holds the GIL for a sixth of the time of a save.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import hnswlib
import numpy as np

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.rows import Coded, Exact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.index.rows import Form

NORM_TOLERANCE = 2e-3
"""How far a squared norm may be from 1."""

_ARRAYS = ("label_lookup_external", "label_lookup_internal", "element_levels", "data_level0", "link_lists")
_SCALARS = {
    *("space", "dim", "M", "ef_construction", "cur_element_count", "enterpoint_node"),
    *("size_data_per_element", "size_links_per_element", "label_offset", "offset_data"),
}
_DELETED_BYTE, _DELETED_BIT = 2, 1  # hnswlib flags a deleted element in the third byte of its level-0 link count


def check_vector(vector: object, dim: int) -> None:
    """Raise IndexUnavailable unless `vector` is a finite float32 array of shape (dim,) and unit norm."""
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.shape != (dim,):
        found = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise IndexUnavailable(f"a vector must be float32 of shape ({dim},), got {found}")
    with np.errstate(all="ignore"):
        square = float(np.dot(vector, vector))
    if not abs(square - 1.0) <= NORM_TOLERANCE:  # in this form a NaN fails too
        raise IndexUnavailable(f"a vector must be finite and of unit norm, got squared norm {square:g}")


def check_rows(rows: NDArray[np.float32], dim: int) -> None:
    """Raise IndexUnavailable unless `rows` are finite, float32, of shape (n, dim) and each of unit norm."""
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != dim:
        raise IndexUnavailable(f"rows must be float32 of shape (n, {dim}), got {rows.dtype} {rows.shape}")
    with np.errstate(all="ignore"):
        squares = np.vecdot(rows, rows)
    if not bool(np.all(np.abs(squares - 1.0) <= NORM_TOLERANCE)):
        raise IndexUnavailable("every row must be finite and of unit norm")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What must agree for two graphs to be interchangeable; `ef_search` may differ.

    With `components`, vectors are kept as codes, and a graph is over so many of their components.
    """

    dim: int
    m: int
    ef_construction: int
    ef_search: int
    components: int = 0

    @cached_property
    def form(self) -> Form:
        """How vectors are kept."""
        return Coded(self.dim) if self.components else Exact(self.dim)

    @property
    def graph(self) -> Shape:
        """The shape of what hnswlib holds."""
        return replace(self, dim=self.components, components=0) if self.components else self

    @property
    def graph_bytes(self) -> int:
        """About what an element of a graph takes."""
        vector_bytes = 4 * self.graph.dim + (self.form.dtype.itemsize if self.components else 0)
        return vector_bytes + 9 * self.m


class Taker(Protocol):
    """A graph that rows may be appended to."""

    def append(self, rows: NDArray[np.float32], labels: Sequence[int]) -> None:
        """Add rows of shape (n, dim) under new labels."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GraphState:
    """A graph's memory: hnswlib's scalars, level 0 (links, vector and label of each element), upper links, levels.

    Of a graph over fewer components: its axes, and what is kept of the elements' whole vectors, in the same order.
    """

    scalars: Mapping[str, Any]
    level0: NDArray[np.int8]
    links: NDArray[np.int8]
    levels: NDArray[np.int32]
    axes: NDArray[np.float32] | None = None
    codes: tuple[NDArray[Any], ...] = ()

    def _column(self, start: int, width: int) -> NDArray[np.int8]:
        count, stride = int(self.scalars["cur_element_count"]), int(self.scalars["size_data_per_element"])
        return self.level0.reshape(count, stride)[:, start : start + width]

    def labels(self) -> NDArray[np.uint64]:
        """Return each element's label, in hnswlib's own order."""
        return np.ascontiguousarray(self._column(int(self.scalars["label_offset"]), 8)).view(np.uint64).ravel()

    def vectors(self) -> NDArray[np.float32]:
        """Return each element's vector in the same order: a view of shape (n, dim)."""
        return self._column(int(self.scalars["offset_data"]), 4 * int(self.scalars["dim"])).view(np.float32)

    def kept(self) -> NDArray[Any]:
        """Return what is kept of each element's whole vector, in the same order."""
        return self.vectors() if self.axes is None else np.concatenate(self.codes)

    def deleted(self) -> NDArray[np.bool_]:
        """Return which elements are flagged as deleted, in the same order."""
        return (self._column(_DELETED_BYTE, 1).ravel() & _DELETED_BIT).astype(np.bool_)

    def problem(self, shape: Shape) -> str:
        """Return "" when hnswlib can take this state for a graph of `shape`, else the first thing that disagrees."""
        scalars = self.scalars
        if not scalars.keys() >= _SCALARS:
            return "hnswlib version"
        count = int(scalars["cur_element_count"])
        if (self.axes is not None) != bool(shape.components):
            return "vectors"
        if self.axes is not None and self.axes.shape != (shape.components, shape.dim):
            return "dim"
        if self.axes is not None and sum(map(len, self.codes)) != count:
            return "size"
        if scalars["dim"] != shape.graph.dim or scalars["space"] != "ip":
            return "dim"
        if scalars["M"] != shape.m or scalars["ef_construction"] != shape.ef_construction:
            return "parameters"
        if count < 1 or len(self.level0) != count * scalars["size_data_per_element"] or len(self.levels) != count:
            return "size"
        if len(self.links) != int(self.levels.sum()) * scalars["size_links_per_element"]:
            return "size"
        return "" if 0 <= scalars["enterpoint_node"] < count else "entry point"


class Guard:
    """A graph of unit vectors under integer labels that can neither crash nor lie.

    Everything but `drop` may wait for another thread, so not on the event loop. Labels are the caller's, ascending and
    never used twice.
    """

    def __init__(self, shape: Shape, *, capacity: int = 1, state: GraphState | None = None) -> None:
        """Start empty with room for `capacity`, or from a state. Raises IndexUnavailable when that does not fit."""
        self._shape = shape
        self._last_label = -1
        self._turn = threading.Lock()
        self._dropped: deque[int] = deque()
        self._deleted: set[int] = set()
        if state is None:
            self._index = hnswlib.Index("ip", shape.dim)
            self._index.init_index(capacity, M=shape.m, ef_construction=shape.ef_construction)
        else:
            if problem := state.problem(shape):
                raise IndexUnavailable(f"a graph's state disagrees with the index: {problem}")
            labels = state.labels()
            self._index = _rebuilt(state, capacity=capacity_for(len(labels)))
            self._last_label = int(labels.max())
            self._deleted.update(labels[state.deleted()].tolist())
        self._tune()

    def _tune(self) -> None:
        self._index.set_ef(self._shape.ef_search)
        self._index.set_num_threads(1)

    @property
    def count(self) -> int:
        """Elements in memory, deleted ones too."""
        return int(self._index.get_current_count())

    @property
    def live(self) -> int:
        """Elements that a search may return."""
        return self.count - len(self._deleted)

    def drop(self, label: int) -> None:
        """Forget a label before the next search. Safe from any thread, never waits."""
        self._dropped.append(label)

    def append(self, rows: NDArray[np.float32], labels: Sequence[int]) -> None:
        """Add rows of shape (n, dim) under new labels; a full graph grows where it is."""
        check_rows(rows, self._shape.dim)
        if len(labels) != len(rows) or any(b <= a for a, b in zip((self._last_label, *labels), labels, strict=False)):
            raise IndexUnavailable("labels must ascend, one for each row, above every label used before")
        with self._turn:
            try:
                if self.count + len(rows) > self._index.get_max_elements():
                    self._index.resize_index(capacity_for(self.count + len(rows)))
                self._last_label = labels[-1]
                self._index.add_items(rows, np.asarray(labels, dtype=np.uint64), num_threads=1)
            except RuntimeError as exc:
                raise IndexUnavailable(f"the graph refused {len(rows)} rows: {exc}") from exc
            self._bury()

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """Return at most `k` (label, cosine), closest first; none for an empty graph."""
        check_vector(vector, self._shape.dim)
        with self._turn:
            return self._nearest(vector, k)

    def _nearest(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        self._bury()
        k = min(k, self.live)
        while k > 0:
            try:
                labels, distances = self._index.knn_query(vector, k=k, num_threads=1)
            except RuntimeError as exc:
                # The graph reached fewer than k live elements; hnswlib then returns none of them.
                if k == 1:
                    raise IndexUnavailable(f"the graph reaches none of its {self.live} live entries: {exc}") from exc
                k //= 2
                continue
            cosines = np.clip(1.0 - distances[0], -1.0, 1.0)
            return [pair for pair in zip(labels[0].tolist(), cosines.tolist(), strict=True) if pair[1] >= -1.0]
        return []

    def alive(self, labels: Sequence[int]) -> list[int]:
        """Return those of these labels that a search may return."""
        with self._turn:
            return self._alive(labels)

    def _alive(self, labels: Sequence[int]) -> list[int]:
        self._bury()
        return [label for label in labels if label not in self._deleted]

    def successor(self, capacity: int) -> Guard:
        """Return an empty graph to copy this one to."""
        return Guard(self._shape, capacity=capacity)

    def copy_to(self, other: Taker, labels: Sequence[int]) -> int:
        """Append those of these ascending labels that are live here to another graph; return how many.

        Reading a vector back holds the GIL for about 80 us: copy few at a time.
        """
        with self._turn:
            live = self._alive(labels)
            try:
                rows = self._index.get_items(np.asarray(live, dtype=np.uint64)) if live else None
            except RuntimeError as exc:
                raise IndexUnavailable(f"the graph lacks a vector it should hold: {exc}") from exc
        if rows is not None:
            other.append(rows, live)
        return len(live)

    def state(self) -> GraphState:
        """Copy the graph's memory. Holds the GIL for the copy: about 1 ms per 1,000 elements of 384 values."""
        with self._turn:
            self._bury()
            state = self._index.__getstate__()[0]
        arrays = {name: state.pop(name) for name in _ARRAYS}
        return GraphState(
            scalars=state,
            level0=arrays["data_level0"],
            links=arrays["link_lists"],
            levels=arrays["element_levels"][: state["cur_element_count"]].copy(),
        )

    def _bury(self) -> None:
        while self._dropped:
            label = self._dropped.popleft()
            if label in self._deleted:
                continue
            try:
                self._index.mark_deleted(label)
            except RuntimeError:  # "Label not found": it was dropped before it was ever added
                continue
            self._deleted.add(label)


def capacity_for(count: int) -> int:
    """Return room for an eighth more than `count`: hnswlib's locks take 40 bytes of each place, used or not."""
    return count + max(64, count // 8)


def _rebuilt(state: GraphState, *, capacity: int) -> Any:
    levels = np.zeros(capacity, dtype=np.int32)
    levels[: len(state.levels)] = state.levels
    arrays = {
        "label_lookup_external": state.labels(),
        "label_lookup_internal": np.arange(len(state.levels), dtype=np.uint32),
        "element_levels": levels,
        "data_level0": state.level0,
        "link_lists": state.links,
    }
    try:
        return hnswlib.Index({**state.scalars, "max_elements": capacity, **arrays})
    except (RuntimeError, KeyError, TypeError) as exc:
        raise IndexUnavailable(f"hnswlib refused a graph's state: {exc}") from exc
