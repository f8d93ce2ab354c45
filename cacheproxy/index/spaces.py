"""Spaces: the vectors that are kept, as one similarity head or another makes them, each space with an index of its own.

The store keeps the encoder's vectors; a space holds what its head makes of them. One space serves; another one may be
filled beside it, gets everything that is kept meanwhile, and then takes its place between two requests. A search names
its epoch, and is answered in that one or not at all: no similarity is ever measured by another head's threshold.

A space may have an encoder of its own, whose layers were changed: then texts are encoded, where vectors are projected
elsewhere.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import structlog

from cacheproxy.errors import IndexUnavailable
from cacheproxy.index.guard import check_vector
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.index.space import (
    BEHIND_ROWS,
    ENCODED_ROWS,
    Behind,
    Own,
    Projection,
    Space,
    counted,
    encoded,
    projected,
    remembered,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from cacheproxy import settings
    from cacheproxy.index.partitioned import IndexStats
    from cacheproxy.index.restore import Row
    from cacheproxy.model import Candidate, Partition
    from cacheproxy.ports import Embedder

log = structlog.get_logger()

_POLL_S = 0.05
_TURN_BATCHES = 8
"""Batches of one space's entries that `catch_up` has encoded before it looks at all spaces again."""


class Spaces:
    """The vector index of a proxy, behind `ports.VectorIndex`, over the spaces of one encoder.

    `base` is the encoder's epoch and `dim` the length of its vectors. `head` serves from the start, if there is one, or
    the encoder that is `own`.
    """

    def __init__(
        self,
        config: settings.Index,
        *,
        dim: int,
        base: str,
        head: tuple[str, Projection] | None = None,
        own: Own | None = None,
    ) -> None:
        self._config = config
        self._dim = dim
        self._base = base
        epoch, projection = head or (own.embedder.epoch if own else base, None)
        self._serving = self._space(epoch, projection, own)
        self._all = {epoch: self._serving}
        self._saving = asyncio.Lock()
        self._whole: Callable[[], bool] = lambda: True
        self._tidied = False

    async def __aenter__(self) -> Spaces:
        await self._serving.index.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for space in list(self._all.values()):
            await space.index.aclose()
            if space.own is not None:
                await space.own.aclose()

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

    @property
    def waiting(self) -> int:
        """How many entries the serving space cannot find yet, since their vectors have yet to be made."""
        return len(self._serving.due)

    def encoder(self, epoch: str | None) -> Embedder | None:
        """Return what makes the vectors that an epoch is searched by, where it is not the encoder of `base`."""
        space = self._all.get(epoch or "")
        return space.own.embedder if space is not None and space.own is not None else None

    def alike(self, one: NDArray[np.float32], other: NDArray[np.float32], epoch: str) -> float:
        """Return how near two of the encoder's vectors are in an epoch; -1 where it is gone, or has its own encoder."""
        space = self._all.get(epoch)
        if space is None or space.own is not None:
            return -1.0
        made = space.made(np.stack([one, other]))
        return float(np.dot(made[0], made[1]))

    async def search(self, partition: Partition, vector: NDArray[np.float32], k: int) -> list[Candidate]:
        """Return at most `k` candidates, closest first; none in an epoch that does not serve any more.

        The vector is the encoder's, or, where the epoch has its own `encoder`, that one's. Raises IndexUnavailable for
        one that is not: of wrong dtype, shape, norm or not finite.
        """
        space = self._all.get(partition.epoch)
        if space is not None and space.head is None:
            return await space.index.search(partition, vector, k)  # which checks it
        check_vector(vector, self._dim)
        return [] if space is None else await space.index.search(partition, space.made(vector), k)

    def add(
        self,
        partition: Partition,
        entry_id: str,
        vector: NDArray[np.float32],
        sought: tuple[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Make an entry findable at once in every space. Never blocks. Raises as `search`, for another epoch, too.

        A space with its own encoder finds it at once by what that one made of it, where it was `sought` in that epoch,
        else soon: once `catch_up` has had its text encoded.
        """
        check_vector(vector, self._dim)
        if partition.epoch != self._base:
            raise IndexUnavailable("the vector is of another encoder epoch than the index")
        for space in self._all.values():
            if space.own is None:
                space.index.add(replace(partition, epoch=space.epoch), entry_id, space.made(vector))
            elif sought is not None and sought[0] == space.epoch:
                space.due.pop(entry_id, None)
                _take(space, partition, entry_id, sought[1])
                space.own.keep(entry_id, sought[1])
            else:
                space.due[entry_id] = partition

    async def catch_up(self) -> None:
        """Make some of the vectors that spaces with their own encoder lack, and write them down; call it again.

        Spaces take their turns at once, each on its encoder's thread, so that none waits for another to be done. One
        that is far behind hurries. Raises what one of them raised: EmbedderUnavailable, StoreUnavailable or
        IndexUnavailable.
        """
        if not self._tidied and self._whole():
            await self._tidy()
        owned = list(self._owned())
        turns = await asyncio.gather(*(self._catch_up(space, own) for space, own in owned), return_exceptions=True)
        for (space, _), failure in zip(owned, turns, strict=True):
            if failure is not None and self._open(space):
                raise failure

    async def _catch_up(self, space: Space, own: Own) -> None:
        for _ in range(_TURN_BATCHES):
            ids = list(islice(space.due, ENCODED_ROWS))
            if ids:
                made = await own.vectors(ids, hurry=len(space.due) > BEHIND_ROWS)
                if not self._open(space):
                    return
                for one in ids:
                    partition = space.due.pop(one, None)
                    if partition is not None and one in made:
                        _take(space, partition, one, made[one])
            await own.flush()
            if not space.due:
                return

    def remove(self, entry_ids: Collection[str]) -> None:
        """Forget entries in every space; no later search returns them."""
        for space in self._all.values():
            space.index.remove(entry_ids)
        self._forget(entry_ids)

    def erase(self, entry_ids: Collection[str], *, scrub: bool = True) -> int:
        """Forget entries, with `scrub` their vectors by and by; return how many the serving space knew."""
        found = self._serving.index.erase(entry_ids, scrub=scrub)
        for space in self._all.values():
            if space is not self._serving:
                space.index.erase(entry_ids, scrub=scrub)
        self._forget(entry_ids)
        return found

    async def scrub_aside(self) -> int:
        """Leave nothing of what was erased beside the index. Raises IndexUnavailable."""
        for _, own in self._owned():
            await own.flush()
        return 0

    def forget_embeddings(self) -> int:
        """Remember no embedding of before, nor what is being encoded right now; return how many were known."""
        return sum(own.forget_embeddings() for _, own in self._owned())

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

    async def restore(
        self, directory: Path | None, rows: AsyncIterator[Row], whole: Callable[[], bool] = lambda: True
    ) -> None:
        """Fill the serving space from the store's rows, which are the encoder's. Raises what `rows` raises.

        Of its own encoder's vectors those that were made before are taken; `catch_up` makes the others. It also
        forgets those of entries that are not kept any more, once the store says that all it keeps was told (`whole`).
        """
        self._whole = whole
        space, own = self._serving, self._serving.own
        if own is None:
            rows = rows if space.head is None else projected(space, self._dim, rows)
        else:
            rows = remembered(space, own, rows)
        await space.index.restore(directory, rows)

    async def _tidy(self) -> None:
        """Leave no vector beside the store of what a crash, or another replica, removed unheard."""

        def kept(entry_id: str) -> bool:
            return any(entry_id in space.due or entry_id in space.index for space in self._all.values())

        for _, own in islice(self._owned(), 1):  # what one forgets is forgotten in every epoch
            await own.keep_only(kept)
            self._tidied = True

    # Another space

    @asynccontextmanager
    async def beside(self, epoch: str, head: Projection | None, own: Own | None = None) -> AsyncIterator[Space]:
        """Open another space, which gets what is kept from now on; unless it serves in the end, it is closed then.

        An encoder of its `own` is closed with it. Raises IndexUnavailable where one of this epoch is there already.
        """
        if epoch in self._all:
            raise IndexUnavailable("a space of this epoch is there already")
        space = self._space(epoch, head, own)
        await space.index.__aenter__()
        self._all[epoch] = space
        try:
            yield space
        finally:
            if space is not self._serving:
                await self._close(space)

    async def fill(self, space: Space, rows: AsyncIterator[Row], advance: Callable[[int], None]) -> None:
        """Put the store's rows into a space beside; what was kept or removed meanwhile counts more than a row.

        `advance` is told of each batch. It ends however many new entries come: once those that are still to be encoded
        do not become fewer, they are left to `catch_up` (decision 0048). Raises what `rows` raises.
        """
        while not self._whole():  # noqa: ASYNC110 - an engine that is away has nobody to tell
            await asyncio.sleep(_POLL_S)
        own = space.own
        made = projected(space, self._dim, rows) if own is None else encoded(space, own, rows)
        await space.index.restore(None, counted(made, advance))
        if own is not None:
            await self._tidy()
        # Until nothing is due it is right, but slow: rows are still on their way into graphs.
        behind, now_s = Behind(), asyncio.get_running_loop().time
        while space.index.stats().due or behind.waits(len(space.due), now_s()):  # noqa: ASYNC110 - upkeep takes minutes and has nobody to tell
            await asyncio.sleep(_POLL_S)
        if len(space.due) > BEHIND_ROWS:
            log.warning("space_behind", epoch=space.epoch, waiting=len(space.due), entries=len(space.index))

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
        if not self._open(space):
            return
        del self._all[space.epoch]
        async with self._saving:
            await space.index.aclose()
        if space.own is not None:
            await space.own.aclose()

    def _open(self, space: Space) -> bool:
        """Whether it is not closed yet; another one may bear its name since."""
        return self._all.get(space.epoch) is space

    def _space(self, epoch: str, head: Projection | None, own: Own | None) -> Space:
        dim = self._dim if head is None else head.dim
        return Space(epoch=epoch, head=head, index=PartitionedIndex(self._config, dim=dim, epoch=epoch), own=own)

    def _owned(self) -> Iterator[tuple[Space, Own]]:
        yield from [(space, space.own) for space in self._all.values() if space.own is not None]

    def _forget(self, entry_ids: Collection[str]) -> None:
        for space, own in self._owned():
            for one in entry_ids:
                space.due.pop(one, None)
            own.forget(entry_ids)


def _take(space: Space, partition: Partition, entry_id: str, vector: NDArray[np.float32]) -> None:
    space.index.add(replace(partition, epoch=space.epoch), entry_id, vector)
