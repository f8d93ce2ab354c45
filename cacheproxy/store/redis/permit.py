"""When this replica may serve and change what is kept: while the leases of the logs concerned hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cacheproxy.errors import StoreUnavailable

if TYPE_CHECKING:
    from cacheproxy.shared.layout import Layout, Log
    from cacheproxy.shared.lease import Data

NO_LEASE = (
    "this replica has no lease: the shared store is away, or being read again; see /readyz, GET /admin/v1/replicas "
    "and store.url"
)
_CLOSED = "the shared store is not open: this proxy is starting or stopping; see /readyz"


class Lease(Protocol):
    """What lets this replica serve (`shared.members.Members`)."""

    @property
    def replica(self) -> str:
        """Its name, a new one at each start."""
        ...

    def serving(self, log: Log) -> bool:
        """Whether what a log is about may be served and changed now."""
        ...

    def data(self, log: Log) -> Data | None:
        """Return which data of the engine it was granted on; None where that is not known."""
        ...


class Permit:
    """Asked before and after everything: raises StoreUnavailable where this replica may not, or may not any more.

    Documents need the leases of their shard and of the control log.
    """

    def __init__(self, lease: Lease, layout: Layout) -> None:
        self.open = False
        """Whether the store is open."""
        self._lease = lease
        self._layout = layout

    def opened(self) -> None:
        """Go on while the store is open."""
        if not self.open:
            raise StoreUnavailable(_CLOSED)

    def one(self, entry_id: str) -> None:
        """Go on where this entry may be served."""
        self.opened()
        if not self.holds(entry_id):
            raise StoreUnavailable(NO_LEASE)

    def all(self) -> None:
        """Go on where every entry may be served."""
        self.opened()
        if not self.serving:
            raise StoreUnavailable(NO_LEASE)

    def holds(self, entry_id: str) -> bool:
        """Whether the leases hold that say what is known of an entry."""
        return self.open and self._lease.serving(self._layout.shard_of(entry_id)) and self._lease.serving("c")

    def shard(self, shard: int) -> bool:
        """Whether what is known of a shard holds."""
        return self._lease.serving(shard)

    @property
    def reachable(self) -> bool:
        """Whether the engine answers for every shard."""
        return all(map(self._lease.serving, self._layout.documents))

    @property
    def serving(self) -> bool:
        """Whether every lease holds."""
        return all(map(self._lease.serving, self._layout.logs))

    def data(self, entry_id: str) -> Data | None:
        """Return which data of the engine an entry's lease was granted on; None where that is not known."""
        return self._lease.data(self._layout.shard_of(entry_id))
