"""Where a key is: the one server, the master that Sentinels know, or the node of a Cluster that has its slot.

A route remembers its answer until it is told that the answer was wrong; it never asks behind a caller's back.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import AuthenticationError, RedisError

from cacheproxy.settings import Secret
from cacheproxy.shared.address import Address
from cacheproxy.shared.slots import read_masters, read_slots, slot_of, spread
from cacheproxy.shared.wire import Login, NotMaster, PoolExhausted, UnknownService, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cacheproxy.ports import Clock
    from cacheproxy.shared.address import Target

FAILURES = (RedisError, OSError, TimeoutError, PoolExhausted, NotMaster)
_PAUSE_S = 0.2
"""Shortest time between two questions about the slots of a Cluster."""


class Route(Protocol):
    """One kind of engine."""

    trouble: Exception | None
    """Why the last question brought no answer."""
    stale: bool
    """Whether what is known may be wrong."""

    async def address(self, key: str | bytes | None, timeout_s: float) -> Address | None:
        """Return the server of a key; None where nobody knows now."""
        ...

    def known(self, key: str | bytes) -> Address | None:
        """Return the server of a key as far as it is known, asking nobody."""
        ...

    def lost(self, address: Address) -> None:
        """Note that this server may not be the one any more."""
        ...

    def moved(self, slot: int, address: Address) -> None:
        """Note where a slot is now."""
        ...

    async def confirmed(self, timeout_s: float) -> Collection[Address]:
        """Return the masters that most of those who would name another one still name, and see nothing wrong with.

        Who takes over needs a majority, or a quorum, that sees the old one down: what is granted from the moment before
        this was asked was granted before that.
        """
        ...

    async def masters(self, timeout_s: float) -> tuple[Address, ...]:
        """Return every server that keys are kept on, as far as known."""
        ...

    async def close(self) -> None:
        """End the connections of its own."""
        ...


class OneServer:
    """`redis://`: nothing to find."""

    def __init__(self, target: Target) -> None:
        [self._address] = target.nodes
        self.trouble: Exception | None = None
        self.stale = False

    async def address(self, key: str | bytes | None, timeout_s: float) -> Address | None:
        """Return the server."""
        return self._address

    def known(self, key: str | bytes) -> Address | None:
        """Return the server."""
        return self._address

    def lost(self, address: Address) -> None:
        """There is no other."""

    def moved(self, slot: int, address: Address) -> None:
        """There is no other."""

    async def confirmed(self, timeout_s: float) -> Collection[Address]:
        """Nobody could name another one."""
        return (self._address,)

    async def masters(self, timeout_s: float) -> tuple[Address, ...]:
        """Return the server."""
        return (self._address,)

    async def close(self) -> None:
        """Nothing to end."""


class Sentinels:
    """`redis+sentinel://`: the master that most of those Sentinels name who answer."""

    def __init__(self, target: Target, login: Login) -> None:
        self._service = target.service
        self._nodes = target.nodes
        # Sentinels mostly have no password of their own; where one asks for it, it is given the engine's.
        plain = Login(name=login.name, username="", password=Secret(""), tls=login.tls)
        self._login = Login(name=login.name, username=login.username, password=login.password, tls=login.tls)
        self._wires = {node: Wire(node, plain, 4, None) for node in target.nodes}
        self.trouble: Exception | None = None
        self.stale = False
        self._known: Address | None = None
        self._asking: asyncio.Lock = asyncio.Lock()

    async def address(self, key: str | bytes | None, timeout_s: float) -> Address | None:
        """Return the master, asked for where it is not known."""
        if self._known is not None and not self.stale:
            return self._known
        async with asyncio.timeout(timeout_s), self._asking:
            if self._known is None or self.stale:
                command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
                replies = await self._ask(command, timeout_s)
                named = Counter(Address(reply[0].decode(), int(reply[1])) for reply in replies if reply)
                if named:
                    self._known, self.stale = named.most_common(1)[0][0], False
                elif any(reply == [] for reply in replies):
                    self.trouble = UnknownService()
        return self._known

    def known(self, key: str | bytes) -> Address | None:
        """Return the master, if it is known."""
        return self._known

    def lost(self, address: Address) -> None:
        """Ask again with the next command."""
        if address == self._known:
            self.stale = True

    def moved(self, slot: int, address: Address) -> None:
        """Slots belong to Clusters."""

    async def confirmed(self, timeout_s: float) -> Collection[Address]:
        """Ask all Sentinels of the setting; most of these must agree."""
        known, agreed = self._known, 0
        for reply in await self._ask(("SENTINEL", "MASTER", self._service), timeout_s):
            told = dict(zip(reply[::2], reply[1::2], strict=False))
            flags = set(told.get(b"flags", b"").decode().split(","))
            if Address(told.get(b"ip", b"").decode(), int(told.get(b"port", b"0"))) != known:
                self.stale = True
            elif not flags & {"s_down", "o_down", "failover_in_progress", "disconnected"}:
                agreed += 1
        return (known,) if known is not None and agreed > len(self._nodes) // 2 else ()

    async def masters(self, timeout_s: float) -> tuple[Address, ...]:
        """Return the master, if it is known."""
        known = await self.address(None, timeout_s)
        return (known,) if known else ()

    async def close(self) -> None:
        """End the connections to Sentinels."""
        await asyncio.gather(*(wire.close() for wire in self._wires.values()))

    async def _ask(self, command: tuple[str, ...], timeout_s: float) -> list[Any]:
        """Return the replies of those who answered; none is a list of nothing."""
        # Somewhat less than the whole: those that answer must not be lost with one that hangs.
        replies = await asyncio.gather(*(self._ask_one(node, command, timeout_s * 0.8) for node in self._nodes))
        return [reply for reply in replies if reply is not None]

    async def _ask_one(self, node: Address, command: tuple[str, ...], timeout_s: float) -> list[Any] | None:
        for _ in range(2):
            try:
                [reply] = await self._wires[node].exchange([command], timeout_s)
            except AuthenticationError as exc:
                reply = exc
            except FAILURES as exc:
                self.trouble = exc
                return None
            if not isinstance(reply, Exception):
                return reply or []
            self.trouble = reply
            if getattr(reply, "status_code", "") != "NOAUTH":
                return [] if "No such master" in str(reply) else None
            await self._wires[node].close()
            self._wires[node] = Wire(node, self._login, 4, None)
        return None


class Cluster:
    """`redis+cluster://`: the map of slots, from whichever node answers."""

    def __init__(self, target: Target, wire: Callable[[Address], Wire], clock: Clock) -> None:
        self._seeds = target.nodes
        self._wire = wire
        self._clock = clock
        self._slots: dict[int, Address] = {}
        self.stale = True
        self._asked_at = float("-inf")
        self._suspect: set[Address] = set()
        self._asking: asyncio.Lock = asyncio.Lock()
        self.trouble: Exception | None = None

    async def address(self, key: str | bytes | None, timeout_s: float) -> Address | None:
        """Return the node of a key, with a new map where this one was wrong."""
        if self.stale:
            await self._refresh(timeout_s)
        if key is None:
            return next(iter(self._slots.values()), None)
        return self._slots.get(slot_of(key))

    def known(self, key: str | bytes) -> Address | None:
        """Return the node of a key, as the map has it."""
        return self._slots.get(slot_of(key))

    def lost(self, address: Address) -> None:
        """Ask others for a new map with the next command."""
        self._suspect.add(address)
        self.stale = True

    def moved(self, slot: int, address: Address) -> None:
        """Follow a MOVED, and ask for the whole map."""
        self._slots[slot] = address
        self.stale = True

    async def confirmed(self, timeout_s: float) -> Collection[Address]:
        """Ask all masters about each other; most must agree. By itself one goes on for a whole node timeout."""
        masters = spread(self._slots)
        told = await asyncio.gather(*(self._asked(node, ("CLUSTER", "NODES"), timeout_s) for node in masters))
        seen = Counter(
            address
            for node, reply in zip(masters, told, strict=True)
            if isinstance(reply, bytes)
            for address in read_masters(reply, node)
        )
        return {address for address, count in seen.items() if count > len(masters) // 2}

    async def masters(self, timeout_s: float) -> tuple[Address, ...]:
        """Return the nodes that have slots."""
        if self.stale:
            await self._refresh(timeout_s)
        return spread(self._slots)

    async def close(self) -> None:
        """Nothing to end: connections are the link's."""

    async def _refresh(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s), self._asking:
            if not self.stale or self._clock.monotonic() - self._asked_at < _PAUSE_S:
                return
            self._asked_at = self._clock.monotonic()
            for node in self._order():
                reply = await self._asked(node, ("CLUSTER", "SLOTS"), timeout_s / 3)
                if isinstance(reply, list) and reply:
                    self._slots, self.stale = read_slots(reply, node), False
                    self._suspect.clear()
                    return

    def _order(self) -> Sequence[Address]:
        nodes = list(dict.fromkeys((*self._seeds, *spread(self._slots))))
        random.shuffle(nodes)
        return sorted(nodes, key=lambda node: node in self._suspect)

    async def _asked(self, node: Address, command: tuple[str, ...], timeout_s: float) -> Any:
        try:
            [reply] = await self._wire(node).exchange([command], timeout_s)
        except FAILURES as exc:
            self.trouble = exc
            return None
        self.trouble = reply if isinstance(reply, Exception) else None
        return reply
