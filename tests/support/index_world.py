"""Vectors and partitions for index tests, and waiting until upkeep has nothing left to do."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.index.rows import Coded
from cacheproxy.model import Partition
from cacheproxy.settings import Index

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from numpy.typing import NDArray

    from cacheproxy.index.partitioned import PartitionedIndex

DIM = 16
EPOCH = "test-encoder/onnx-fp32/1-0"

Rows = dict[str, tuple[Partition, "NDArray[np.float32]"]]


def partition(category: str = "default", compatibility: bytes = b"c" * 32, epoch: str = EPOCH) -> Partition:
    return Partition(category=category, compatibility=compatibility, epoch=epoch)


def units(count: int, *, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    """Random unit vectors."""
    rows = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def levels(count: int, *, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    """Random unit vectors that int8 codes hold exactly."""
    form = Coded(dim)
    return form.vectors(form.kept(units(count, dim=dim, seed=seed)))


def graphs_from(rows: int, *, vectors: str = "float32", components: int = 12) -> Index:
    """Settings under which a partition becomes a graph above so many rows."""
    return Index(flat_limit=rows, vectors=vectors, components=components)


async def settled(index: PartitionedIndex, *, within_s: float = 60.0) -> None:
    """Wait until upkeep has nothing due."""
    deadline = time.monotonic() + within_s
    while index.stats().due:
        assert time.monotonic() < deadline, f"upkeep did not finish: {index.stats()}"
        await asyncio.sleep(0.002)


async def scan(
    rows: Mapping[str, tuple[Partition, NDArray[np.float32]]],
) -> AsyncIterator[tuple[Partition, str, NDArray[np.float32]]]:
    """What a store's scan yields for these entries."""
    for entry_id, (where, vector) in rows.items():
        yield where, entry_id, vector


def filled(index: PartitionedIndex, count: int, *, where: Partition | None = None, seed: int = 0) -> Rows:
    """Add `count` entries e0, e1, ... to one partition; return them as the store would have them."""
    home = where or partition()
    rows: Rows = {f"e{i}": (home, vector) for i, vector in enumerate(units(count, seed=seed))}
    for entry_id, (_, vector) in rows.items():
        index.add(home, entry_id, vector)
    return rows
