"""Spaces: the vectors that are kept, as one similarity head or another makes them, each space with an index of its own.

The store keeps the encoder's vectors; a space holds what its head makes of them. One space serves; another one may be
filled beside it, gets everything that is kept meanwhile, and then takes its place between two requests. A search names
its epoch, and is answered in that one or not at all: no similarity is ever measured by another head's threshold.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.guard import check_vector
from cacheproxy.index.partitioned import PartitionedIndex

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from cacheproxy import settings
    from cacheproxy.index.partitioned import IndexStats
    from cacheproxy.index.restore import Row
    from cacheproxy.model import Candidate, Partition

_POLL_S = 0.05
BATCH_ROWS = 64
"""Vectors projected at a time while a space is filled: about a millisecond."""


class Projection(Protocol):
    """What a space makes of the encoder's vectors (`embed.head.Head`)."""

    @property
    def dim(self) -> int:
        """Length of what it makes."""
        ...

    def project(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return unit vectors, shape (n, dim), of the encoder's, or one of shape (dim,) of one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """One way to tell what is alike. `head` is None for the encoder's own."""

    epoch: str
    head: Projection | None
    index: PartitionedIndex

    def made(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what this space holds of the encoder's vectors."""
        return rows if self.head is None else self.head.project(rows)


class Spaces:
    """The vector index of a proxy, behind `ports.VectorIndex`, over the spaces of one encoder.

    `base` is the encoder's epoch and `dim` the length of its vectors. `head` serves from the start, if there is one.
    """

    def __init__(
        self, config: settings.Index, *, dim: int, base: str, head: tuple[str, Projection] | None = None
    ) -> None:
        self._config = config
        self._dim = dim
        self._base = base
        epoch, projection = head or (base, None)
        self._serving = self._space(epoch, projection)
        self._all = {epoch: self._serving}
        self._saving = asyncio.Lock()

    async def __aenter__(self) -> Spaces:
        await self._serving.index.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for space in list(self._all.values()):
            await space.index.aclose()

    @property
    def base(self) -> str:
        """The encoder's epoch, which every partition of a kept entry bears."""
        return self._base

    @property
    def epoch(self) -> str:
        """The epoch that serves."""
        return self._serving.epoch

    @property
    def serving(self) -> Space:
        """The space that serves."""
        return self._serving

    def alike(self, one: NDArray[np.float32], other: NDArray[np.float32], epoch: str) -> float:
        """Return how near two of the encoder's vectors are in an epoch; -1 where it is gone."""
        space = self._all.get(epoch)
        if space is None:
            return -1.0
        made = space.made(np.stack([one, other]))
        return float(np.dot(made[0], made[1]))

    async def search(self, partition: Partition, vector: NDArray[np.float32], k: int) -> list[Candidate]:
        """Return at most `k` candidates, closest first; none in an epoch that does not serve any more.

        Raises IndexUnavailable for a vector that is not the encoder's: of wrong dtype, shape, norm or not finite.
        """
        check_vector(vector, self._dim)
        space = self._all.get(partition.epoch)
        return [] if space is None else await space.index.search(partition, space.made(vector), k)

    def add(self, partition: Partition, entry_id: str, vector: NDArray[np.float32]) -> None:
        """Make an entry findable at once in every space. Never blocks. Raises as `search`, for another epoch, too."""
        check_vector(vector, self._dim)
        if partition.epoch != self._base:
            raise IndexUnavailable("the vector is of another encoder epoch than the index")
        for space in self._all.values():
            space.index.add(replace(partition, epoch=space.epoch), entry_id, space.made(vector))

    def remove(self, entry_ids: Collection[str]) -> None:
        """Forget entries in every space; no later search returns them."""
        for space in self._all.values():
            space.index.remove(entry_ids)

    def erase(self, entry_ids: Collection[str], *, scrub: bool = True) -> int:
        """Forget entries, with `scrub` their vectors by and by; return how many the serving space knew."""
        found = self._serving.index.erase(entry_ids, scrub=scrub)
        for space in self._all.values():
            if space is not self._serving:
                space.index.erase(entry_ids, scrub=scrub)
        return found

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        return self._serving.index.health()

    def __len__(self) -> int:
        """Count the entries that the serving space can find."""
        return len(self._serving.index)

    def stats(self) -> IndexStats:
        """Return the figures of the serving space."""
        return self._serving.index.stats()

    # Snapshots: of the serving space; the manifest names its epoch, so that no other one takes it over

    async def save(self, directory: Path) -> None:
        """Write a snapshot of the serving space. Raises IndexUnavailable."""
        async with self._saving:
            await self._serving.index.save(directory)

    async def scrub(self, directory: Path) -> None:
        """Leave no erased vector on disk. Raises IndexUnavailable."""
        async with self._saving:
            await self._serving.index.scrub(directory)

    async def restore(self, directory: Path | None, rows: AsyncIterator[Row]) -> None:
        """Fill the serving space from the store's rows, which are the encoder's. Raises what `rows` raises."""
        space = self._serving
        await space.index.restore(directory, rows if space.head is None else _made(space, self._dim, rows))

    # Another space

    @asynccontextmanager
    async def beside(self, epoch: str, head: Projection | None) -> AsyncIterator[Space]:
        """Open another space, which gets what is kept from now on; unless it serves in the end, it is closed then.

        Raises IndexUnavailable where one of this epoch is there already.
        """
        if epoch in self._all:
            raise IndexUnavailable("a space of this epoch is there already")
        space = self._space(epoch, head)
        await space.index.__aenter__()
        self._all[epoch] = space
        try:
            yield space
        finally:
            if space is not self._serving:
                await self._close(space)

    async def fill(self, space: Space, rows: AsyncIterator[Row], advance: Callable[[int], None]) -> None:
        """Put the store's rows into a space beside; what was kept or removed meanwhile counts more than a row.

        `advance` is told of each batch. Raises what `rows` raises.
        """
        await space.index.restore(None, _counted(_made(space, self._dim, rows), advance))
        # Until nothing is due it is right, but slow: rows are still on their way into graphs.
        while space.index.stats().due:  # noqa: ASYNC110 - upkeep takes minutes and has nobody to tell
            await asyncio.sleep(_POLL_S)

    def held(self, epoch: str) -> Space | None:
        """Return the space of an epoch that is not closed yet, because it serves or did a moment ago; else None."""
        return self._all.get(epoch)

    def serve(self, space: Space) -> Space:
        """Let a space serve from the next plan on; return the one before, which still answers plans made until now."""
        before, self._serving = self._serving, space
        return before

    async def retire(self, space: Space) -> None:
        """Close a space that serves no more. Plans made for it find nothing from now on."""
        if space is not self._serving:
            await self._close(space)

    async def _close(self, space: Space) -> None:
        if self._all.get(space.epoch) is not space:
            return  # closed already; another one may bear its name now
        del self._all[space.epoch]
        async with self._saving:
            await space.index.aclose()

    def _space(self, epoch: str, head: Projection | None) -> Space:
        dim = self._dim if head is None else head.dim
        return Space(epoch=epoch, head=head, index=PartitionedIndex(self._config, dim=dim, epoch=epoch))


async def _made(space: Space, dim: int, rows: AsyncIterator[Row]) -> AsyncIterator[Row]:
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


async def _counted(rows: AsyncIterator[Row], advance: Callable[[int], None]) -> AsyncIterator[Row]:
    seen = 0
    async for row in rows:
        yield row
        seen += 1
        if seen % BATCH_ROWS == 0:
            advance(BATCH_ROWS)
    advance(seen % BATCH_ROWS)
