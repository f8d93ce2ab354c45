"""What is kept: documents, operators' view of them, and the word on personal data before anything is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Entry, Holding, Partition, Selector


class EntryStore(Protocol):
    """Documents by id: the commit point of every hit."""

    @property
    def fence(self) -> int:
        """A number that every purge raises, also over restarts; a fill takes it along when it begins."""
        ...

    @property
    def over_cap(self) -> bool:
        """Whether `sweep` has something to do about the size caps; puts far above them are refused."""
        ...

    async def get(self, entry_id: str) -> Entry | None:
        """Return the entry, or None when it is missing, gone or fails its checksum (then also dropped and counted).

        An entry past its expiry is returned until it is gone (`Entry.gone_s`): whoever serves it judges its freshness.

        Raises StoreUnavailable.
        """
        ...

    def still_holds(self, entry: Entry, fence: int) -> bool:
        """Whether an entry that `get` returned since the fence was `fence` may still be served.

        As far as is known without waiting, neither it nor the one whose answer it repeats was removed since then.
        """
        ...

    async def put(self, entry: Entry, fence: int) -> bool:
        """Keep an entry, replacing one of the same id; return once a crash of this process cannot lose it.

        Returns False, keeping nothing, when this id was purged since the fence was `fence`: the fill began before. What
        began before a restart, or so long ago that its purges are no longer remembered, is refused whatever its id.
        Raises StoreUnavailable.
        """
        ...

    async def purge(self, entry_ids: Collection[str]) -> int:
        """Remove entries for good, raise the fence, return how many were there. Raises StoreUnavailable.

        Fills of these ids that have begun are refused, also when this fails; fills of all others are not touched.
        """
        ...

    async def sweep(self) -> list[str]:
        """Remove entries that are gone, then, above the size caps, what policy says is to go; return the ids removed.

        Bounded work per call: call again while it returns ids. Raises StoreUnavailable.
        """
        ...

    def scan(self, epoch: str) -> AsyncIterator[tuple[Partition, str, NDArray[np.float32]]]:
        """Yield (partition, id, vector) of each live entry of an epoch, in no order, to rebuild an index."""
        ...

    def health(self) -> str:
        """Return "" when able to serve, else what is wrong."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some entries, oldest row first; `after` continues the listing, None at its end."""

    entries: tuple[Entry, ...]
    after: int | None


class EntryCatalogue(Protocol):
    """The same store, seen by operators: what it holds, and what of it must go."""

    async def page(self, selector: Selector, *, after: int = 0, limit: int = 100) -> Page:
        """Return up to `limit` entries that are meant and not gone; an empty selector lists all.

        Bounded work per call: a page may hold fewer, or none, and still have an `after`. Raises StoreUnavailable.
        """
        ...

    async def erase(self, selector: Selector, *, dry_run: bool = False, scrub: bool = True) -> list[str]:
        """Remove all entries that are meant, for good, and return their ids. Raises StoreUnavailable.

        An empty selector removes nothing. Fills of any entry that have begun are refused from the call on; nothing of
        what was removed can be read from the file afterwards, unless `scrub` is off, which spares rewriting the file:
        then traces may be left in free parts of it. A dry run only tells the ids.
        """
        ...

    def holdings(self) -> list[Holding]:
        """Return what each tenant holds of each category; cheap enough to be asked every few seconds."""
        ...


class PiiGate(Protocol):
    """Looks for personal data."""

    async def find(self, texts: object, kinds: Collection[str]) -> frozenset[str]:
        """Return which of these kinds occur in any string within `texts` (a JSON value). Raises PiiUnavailable."""
        ...
