"""Snapshots of graphs on disk: one sealed file a graph, one generation directory a save, switched by a rename.

    <directory>/<12 digits>/manifest      which files belong to the generation
    <directory>/<12 digits>/<n>.graph     one graph: header, hnswlib's memory, the id of each element

A generation is written under a hidden name and renamed when all of it is on disk, then older ones are deleted: a
crash at any moment leaves the old or the new one. Flat partitions are not in a snapshot; the store's vectors are
enough for them.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.guard import GraphState
from cacheproxy.index.rows import Coded
from cacheproxy.index.sealed import SnapshotRefused, read_sealed, sync_directory, write_sealed
from cacheproxy.model import Partition

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cacheproxy.index.guard import Shape

MANIFEST = "manifest"
_GENERATION = re.compile(r"\d{12}")
_DRAFT = re.compile(r"\.\d{12}")
_HEADER_SIZE_BYTES = 4


class _Manifest(msgspec.Struct, frozen=True):
    epoch: str
    dim: int
    files: list[str]


class _Header(msgspec.Struct, frozen=True):
    """What a graph file holds; `sections` are the byte sizes of level 0, links, levels and ids, in that order.

    Of a graph over fewer components, two more: axes and codes.
    """

    category: str
    compatibility: bytes
    epoch: str
    scalars: dict[str, Any]
    sections: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class StoredGraph:
    """A graph read back: its partition, its memory, and the id of each element or None for a dropped one."""

    partition: Partition
    state: GraphState
    ids: list[str | None]


class Generation:
    """A snapshot in the making. Every method blocks on the disk and raises IndexUnavailable when the disk refuses."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for stray in _matching(directory, _DRAFT):
                shutil.rmtree(stray)
            newest = current(directory)
            number = int(newest.name) + 1 if newest else 1
            self._directory = directory
            self._draft = directory / f".{number:012d}"
            self._final = directory / f"{number:012d}"
            self._files: list[str] = []
            self._draft.mkdir()
        except OSError as exc:
            raise _disk_failed(directory, exc) from exc

    def _next_name(self) -> str:
        self._files.append(f"{len(self._files):06d}.graph")
        return self._files[-1]

    def add(self, partition: Partition, state: GraphState, ids: Mapping[int, str]) -> Path:
        """Write one graph with the ids of its labels; return where it will be found after `commit`."""
        names = msgspec.msgpack.encode([ids.get(label) for label in state.labels().tolist()])
        levels = state.levels.tobytes()
        sections = [state.level0.nbytes, state.links.nbytes, len(levels), len(names)]
        body: list[bytes | memoryview] = [state.level0.data.cast("B"), state.links.tobytes(), levels, names]
        if state.axes is not None:
            axes, codes = state.axes.tobytes(), [part.view(np.uint8).data for part in state.codes]
            sections += [len(axes), sum(map(len, codes))]
            body += [axes, *codes]
        header = msgspec.msgpack.encode(
            _Header(
                category=partition.category,
                compatibility=partition.compatibility,
                epoch=partition.epoch,
                scalars=dict(state.scalars),
                sections=sections,
            )
        )
        size = len(header).to_bytes(_HEADER_SIZE_BYTES, "little")
        name = self._next_name()
        try:
            write_sealed(self._draft / name, [size, header, *body])
        except OSError as exc:
            raise _disk_failed(self._draft, exc) from exc
        return self._final / name

    def link(self, written: Path) -> Path | None:
        """Take over a file of an earlier generation; return as `add`, or None when that is not possible."""
        name = self._next_name()
        try:
            (self._draft / name).hardlink_to(written)
        except OSError:
            self._files.pop()
            return None
        return self._final / name

    def commit(self, epoch: str, dim: int) -> None:
        """Make this the current generation and delete the older ones."""
        try:
            manifest = _Manifest(epoch=epoch, dim=dim, files=self._files)
            write_sealed(self._draft / MANIFEST, [msgspec.msgpack.encode(manifest)])
            sync_directory(self._draft)
            self._draft.rename(self._final)
            sync_directory(self._directory)
            for path in _matching(self._directory, _GENERATION):
                if path != self._final:
                    shutil.rmtree(path)
        except OSError as exc:
            raise _disk_failed(self._directory, exc) from exc


def discard(directory: Path) -> None:
    """Delete every generation, drafts too; the next start fills the index from the store. Raises IndexUnavailable."""
    try:
        if directory.is_dir():
            for path in (*_matching(directory, _GENERATION), *_matching(directory, _DRAFT)):
                shutil.rmtree(path)
            sync_directory(directory)
    except OSError as exc:
        raise IndexUnavailable(
            f"the index snapshots in {directory} could not be deleted ({exc.strerror}); delete them by hand"
        ) from exc


def current(directory: Path) -> Path | None:
    """Return the newest generation, or None. Raises SnapshotRefused when the directory cannot be read."""
    try:
        return max(_matching(directory, _GENERATION), default=None)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SnapshotRefused(directory, "unreadable") from exc


def files_of(generation: Path, *, epoch: str, dim: int) -> list[Path]:
    """Return a generation's graph files. Raises SnapshotRefused when the manifest is not whole or of other vectors."""
    path = generation / MANIFEST
    try:
        manifest = msgspec.msgpack.decode(read_sealed(path), type=_Manifest)
    except msgspec.MsgspecError as exc:
        raise SnapshotRefused(path, "header") from exc
    if manifest.epoch != epoch:
        raise SnapshotRefused(path, "epoch")
    if manifest.dim != dim:
        raise SnapshotRefused(path, "dim")
    return [generation / name for name in manifest.files]


def read_graph(path: Path, *, epoch: str, shape: Shape) -> StoredGraph:
    """Return a graph that was written for this epoch and shape. Raises SnapshotRefused for anything else."""
    body = read_sealed(path)
    try:
        start = _HEADER_SIZE_BYTES + int.from_bytes(body[:_HEADER_SIZE_BYTES], "little")
        header = msgspec.msgpack.decode(body[_HEADER_SIZE_BYTES:start], type=_Header)
        if header.epoch != epoch:
            raise SnapshotRefused(path, "epoch")
        bounds = np.cumsum((start, *header.sections)).tolist()
        level0, links, levels, names, *reduced = (body[a:b] for a, b in pairwise(bounds))
        state = GraphState(
            scalars=header.scalars,
            level0=np.frombuffer(level0, dtype=np.int8),
            links=np.frombuffer(links, dtype=np.int8),
            levels=np.frombuffer(levels, dtype=np.int32),
            axes=np.frombuffer(reduced[0], dtype=np.float32).reshape(-1, shape.dim) if reduced else None,
            codes=(np.frombuffer(reduced[1], dtype=Coded(shape.dim).dtype),) if reduced else (),
        )
        ids = msgspec.msgpack.decode(names, type=list[str | None])
        problem = state.problem(shape)
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError) as exc:
        raise SnapshotRefused(path, "header") from exc
    if problem:
        raise SnapshotRefused(path, problem)
    if len(ids) != len(state.levels):
        raise SnapshotRefused(path, "size")
    partition = Partition(category=header.category, compatibility=header.compatibility, epoch=header.epoch)
    return StoredGraph(partition, state, ids)


def _matching(directory: Path, name: re.Pattern[str]) -> list[Path]:
    return [path for path in directory.iterdir() if name.fullmatch(path.name)]


def _disk_failed(path: Path, exc: OSError) -> IndexUnavailable:
    return IndexUnavailable(f"the index snapshot in {path} was not written ({exc.strerror}); the one before it stays")
