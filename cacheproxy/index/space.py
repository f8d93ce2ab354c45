"""One space: what it is told by, what it holds, and how the store's rows become what it holds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.guard import check_vector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.index.partitioned import PartitionedIndex
    from cacheproxy.index.restore import Row
    from cacheproxy.model import Embedding, Partition
    from cacheproxy.ports import Embedder

BATCH_ROWS = 64
"""Vectors projected at a time while a space is filled: about a millisecond."""
ENCODED_ROWS = 32
"""Entries whose texts are encoded at a time."""
BEHIND_ROWS = 64
"""A space takes its place with at most so many of the newest entries still to be encoded, if they can be caught up."""
_FEWER = 0.9
_FEWER_WITHIN_S = 15.0


class Projection(Protocol):
    """What a space makes of the encoder's vectors (`embed.head.Head`)."""

    @property
    def dim(self) -> int:
        """Length of what it makes."""
        ...

    def project(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return unit vectors, shape (n, dim), of the encoder's, or one of shape (dim,) of one."""
        ...


class Own(Protocol):
    """Another encoder than the one whose vectors are kept, and what it made of kept entries (`recoding.Recoding`)."""

    @property
    def embedder(self) -> Embedder:
        """What makes vectors of the questions that are asked; its epoch is the space's."""
        ...

    async def embedded(self, texts: Collection[str]) -> Mapping[str, Embedding]:
        """Return the embeddings of texts that nobody waits for; those that it cannot read are left out.

        Raises EmbedderUnavailable.
        """
        ...

    async def known(self, ids: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """Return the vectors that were made before, of those of these ids that have one."""
        ...

    async def vectors(self, ids: Sequence[str], *, hurry: bool = False) -> Mapping[str, NDArray[np.float32]]:
        """Return vectors, made of the entries' texts where there are none yet; without those that are gone meanwhile.

        It pauses for live questions unless it is to `hurry`. Raises EmbedderUnavailable and StoreUnavailable.
        """
        ...

    def keep(self, entry_id: str, vector: NDArray[np.float32]) -> None:
        """Remember a vector that was made for a lookup."""
        ...

    def forget(self, ids: Collection[str]) -> None:
        """Forget entries, also those whose vectors are being made right now."""
        ...

    async def flush(self) -> None:
        """Write down what was kept and forgotten. Raises IndexUnavailable; then it is tried again with the next one."""
        ...

    async def keep_only(self, kept: Callable[[str], bool]) -> None:
        """Forget whatever is not kept. Raises IndexUnavailable."""
        ...

    def forget_embeddings(self) -> int:
        """Remember no embedding of before; return how many were known."""
        ...

    async def aclose(self) -> None:
        """Write down what is left, and end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """One way to tell what is alike. `head` is None for the encoder's own, `own` for what heads make of it."""

    epoch: str
    head: Projection | None
    index: PartitionedIndex
    own: Own | None = None
    due: dict[str, Partition] = field(default_factory=dict)
    """Entries whose vectors `own` has yet to make."""

    def made(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what this space holds of the encoder's vectors."""
        return rows if self.head is None else self.head.project(rows)


class Behind:
    """Whether it is worth waiting for the newest entries of a space to be encoded.

    It is while they become fewer by a tenth every 15 s: so that it ends, be there ever so many to begin with, after
    some minutes, also where they come faster than they can be encoded.
    """

    def __init__(self) -> None:
        self._before: tuple[int, float] | None = None
        self._given_up = False

    def waits(self, due: int, now_s: float) -> bool:
        """Return whether to wait on with so many due."""
        if due <= BEHIND_ROWS or self._given_up:
            return False
        if self._before is None:
            self._before = due, now_s
        elif now_s - self._before[1] >= _FEWER_WITHIN_S:
            self._given_up = due > _FEWER * self._before[0]
            self._before = due, now_s
        return not self._given_up


async def _batched(rows: AsyncIterator[Row], size: int) -> AsyncIterator[list[Row]]:
    batch: list[Row] = []
    async for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def encoded(space: Space, own: Own, rows: AsyncIterator[Row]) -> AsyncIterator[Row]:
    """Yield rows with the vectors that another encoder makes of their entries' texts; written down as it goes."""
    async for batch in _batched(rows, ENCODED_ROWS):
        made = await own.vectors([one for _, one, _ in batch])
        await own.flush()
        for partition, one, _ in batch:
            if one in made:
                yield replace(partition, epoch=space.epoch), one, made[one]


async def remembered(space: Space, own: Own, rows: AsyncIterator[Row]) -> AsyncIterator[Row]:
    """Yield rows with the vectors that were made of them before; what lacks one becomes due."""
    async for batch in _batched(rows, BATCH_ROWS):
        made = await own.known([one for _, one, _ in batch])
        for partition, one, _ in batch:
            if one in made:
                yield replace(partition, epoch=space.epoch), one, made[one]
            else:
                space.due[one] = partition


async def projected(space: Space, dim: int, rows: AsyncIterator[Row]) -> AsyncIterator[Row]:
    """Yield rows as a space holds them, projected many at a time; what is no vector of the encoder's is left out."""
    batch: list[Row] = []
    async for row in rows:
        try:
            check_vector(row[2], dim)
        except IndexUnavailable:
            continue
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            for made in _batch(space, batch):
                yield made
            batch = []
            await asyncio.sleep(0)
    for made in _batch(space, batch):
        yield made


def _batch(space: Space, batch: list[Row]) -> list[Row]:
    if not batch:
        return []
    made = space.made(np.stack([vector for _, _, vector in batch]))
    return [
        (replace(partition, epoch=space.epoch), entry_id, vector)
        for (partition, entry_id, _), vector in zip(batch, made, strict=True)
    ]


async def counted(rows: AsyncIterator[Row], advance: Callable[[int], None]) -> AsyncIterator[Row]:
    """Yield rows, telling `advance` how many, some at a time."""
    seen = 0
    async for row in rows:
        yield row
        seen += 1
        if seen % BATCH_ROWS == 0:
            advance(BATCH_ROWS)
    advance(seen % BATCH_ROWS)
