"""The door of one port: how many connections, requests and body bytes it takes, and who keeps it waiting too long."""

from __future__ import annotations

import resource
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from cacheproxy.errors import Overloaded

if TYPE_CHECKING:
    from cacheproxy import settings
    from cacheproxy.pressure import Pressure

_OWN_FILES = 64
"""File descriptors left for everything that is not a connection: store, index, logs, threads' pipes."""

SWEEP_S = 1.0
"""Longest pause between two looks at all connections; a deadline is noticed at most this late."""


class Watched(Protocol):
    """A connection, as the sweep sees it."""

    def sweep(self, now_s: float) -> str | None:
        """End the connection if it is overdue, and return which deadline it missed."""
        ...


class Door:
    """Permits of one port. Nothing waits here: what does not fit is refused at once."""

    def __init__(self, limits: settings.Server, most_connections: int, pressure: Pressure | None = None) -> None:
        """Without `pressure` nobody is turned away because the event loop is late."""
        self.connections: set[Watched] = set()
        self.requests = 0
        self.held_bytes = 0
        self.cut: Counter[str] = Counter()
        """Connections refused or ended by us, by reason."""
        self._by_client: Counter[str] = Counter()
        self._limits = limits
        self._most_connections = most_connections
        self._pressure = pressure
        shortest_s = min(limits.header_timeout_s, limits.body_timeout_s, limits.write_timeout_s, limits.keep_alive_s)
        self._pause_s = min(SWEEP_S, shortest_s / 4)
        self._swept_s: float | None = None
        self._patience_s = 0.0

    def open(self, connection: Watched, client: str) -> bool:
        """Count a new connection; False when it is one too many, of all or of this client's address."""
        most_of_one = self._limits.max_connections_per_client
        if len(self.connections) >= self._most_connections:
            self.cut["max_connections"] += 1
            return False
        if most_of_one:
            if self._by_client[client] >= most_of_one:
                self.cut["max_connections_per_client"] += 1
                return False
            self._by_client[client] += 1
        self.connections.add(connection)
        return True

    def room(self) -> int:
        """How many more connections are let in."""
        return self._most_connections - len(self.connections)

    def closed(self, connection: Watched, client: str) -> None:
        """Forget a connection; one that was never counted is no matter."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if self._limits.max_connections_per_client:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    def opens(self) -> bool:
        """Whether there is time for one more request; asked once of each, before its body is read."""
        return self._pressure is None or self._pressure.opens()

    def knock(self) -> None:
        """See whether there is a permit left, without taking it. Raises Overloaded when there is none."""
        if self.requests >= self._limits.max_requests:
            raise Overloaded(f"{self.requests} requests are being answered; try again in a moment")

    def enter(self) -> None:
        """Take a permit for one request, to be given back by `leave`. Raises Overloaded when none is left."""
        self.knock()
        self.requests += 1

    def hold(self, count: int) -> None:
        """Reserve memory for body bytes, to be given back by `leave`. Raises Overloaded when there is none."""
        if self.held_bytes + count > self._limits.max_held_body_bytes:
            raise Overloaded("the request bodies held at this moment leave no room for this one; try again in a moment")
        self.held_bytes += count

    def leave(self, *, entered: bool, held_bytes: int) -> None:
        """Give back what one request took."""
        self.requests -= entered
        self.held_bytes -= held_bytes

    def sweep(self, now_s: float) -> None:
        """Look at every connection, once a second or four times within the shortest deadline; cheap to call often."""
        passed_s = self._pause_s if self._swept_s is None else now_s - self._swept_s
        if passed_s < self._pause_s:
            return
        self._swept_s = now_s
        # A process that stood still has not read what came meanwhile: that time is no caller's.
        self._patience_s += min(passed_s, 2 * self._pause_s)
        for connection in list(self.connections):
            if missed := connection.sweep(self._patience_s):
                self.cut[missed] += 1


def room_for(connections: int, to_backends: int) -> int:
    """Return how many callers' connections the file limit allows, raising the soft limit as far as it may go.

    Every caller may need a connection to a backend as well, so these are left room for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + to_backends + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):  # some systems allow less than they say
            pass
    if soft == resource.RLIM_INFINITY:
        return connections
    free = max(2, soft - _OWN_FILES)
    return max(1, min(connections, free - min(to_backends, free // 2)))
