"""Flights across replicas: one of them asks the backend, the others wait for what it keeps.

A lease under the flight's key says who asks. It is renewed while the exchange goes on, and ends by itself soon after
its holder does: then one of those who wait asks, so a crash costs one more call. In its place, for a moment, comes what
became of the answer: whether it was kept, or everybody had better ask for himself.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING

from cacheproxy.errors import SharedUnavailable
from cacheproxy.ports import Turn
from cacheproxy.shared import faults
from cacheproxy.shared.script import Script

if TYPE_CHECKING:
    from cacheproxy.ports import Clock
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link

LEASE_MS = 3000
_RENEW_S = 1.0
_WORD_MS = 500
"""How long those who wait can read what became of an answer."""
_STEP_S = 0.02
_LONGEST_STEP_S = 0.1
_KEPT, _ALONE = b"kept", b"alone"
_UNKNOWN = frozenset({faults.TIMEOUT.code, faults.UNREACHABLE.code})
"""After these a command may have been done all the same."""

_RENEW = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
""")
_RELEASE = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
""")
_DROP = Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")
_DROP_S = 1.0


class SharedFlights:
    """The leases of one replica. Every key holds its scope, so that no caller waits for another scope's answer."""

    def __init__(self, link: Link, layout: Layout, clock: Clock) -> None:
        self._link = link
        self._layout = layout
        self._clock = clock
        self._held: dict[bytes, tuple[bytes, float]] = {}
        self._drops: set[asyncio.Task[None]] = set()

    async def turn(self, key: bytes, wait_s: float) -> Turn:
        """Lead, or wait up to `wait_s` for whoever leads. Without the engine everybody is alone, at once.

        So is a second flight of this replica, which would wait for the first one's lease: they share one key.
        """
        if key in self._held:
            return Turn.ALONE
        name, token = self._name(key), secrets.token_bytes(12)
        try:
            if await self._takes(key, name, token):
                return Turn.LEAD
            return await self._wait(key, name, token, wait_s)
        except SharedUnavailable:
            return Turn.ALONE

    async def release(self, key: bytes, *, kept: bool) -> None:
        """Give a lease back; unless something was `kept`, those who wait go on alone. Never fails."""
        held = self._held.pop(key, None)
        if held is not None:
            with contextlib.suppress(SharedUnavailable):  # it ends by itself
                await self._link.run(_RELEASE, [self._name(key)], [held[0], _KEPT if kept else _ALONE, _WORD_MS])

    async def tend(self) -> None:
        """Renew the leases of exchanges that go on; to be called about once a second."""
        now_s = self._clock.monotonic()
        for key, (token, since_s) in list(self._held.items()):
            if now_s - since_s >= _RENEW_S / 2:
                with contextlib.suppress(SharedUnavailable):
                    await self._link.run(_RENEW, [self._name(key)], [token, LEASE_MS])

    async def _takes(self, key: bytes, name: str, token: bytes) -> bool:
        try:
            if await self._link.call("SET", name, token, "NX", "PX", LEASE_MS) is None:
                return False
        except asyncio.CancelledError:
            self._drop(name, token)
            raise
        except SharedUnavailable as exc:
            if exc.fault in _UNKNOWN:
                self._drop(name, token)
            raise
        self._held[key] = token, self._clock.monotonic()
        return True

    def _drop(self, name: str, token: bytes) -> None:
        """Give back, beside the line, a lease that may have been taken by a command whose reply nobody has."""

        async def drop() -> None:
            with contextlib.suppress(SharedUnavailable):  # it ends by itself
                await self._link.slow_run(_DROP, [name], [token], _DROP_S)

        task = asyncio.create_task(drop())
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)

    async def _wait(self, key: bytes, name: str, token: bytes, wait_s: float) -> Turn:
        deadline_s, step_s = self._clock.monotonic() + wait_s, _STEP_S
        while True:
            left_s = deadline_s - self._clock.monotonic()
            if left_s <= 0:
                return Turn.ALONE
            await asyncio.sleep(min(step_s, left_s))
            step_s = min(_LONGEST_STEP_S, step_s * 1.5)
            holder = await self._link.call("GET", name)
            if holder == _ALONE:
                return Turn.ALONE
            if holder == _KEPT:
                return Turn.LOOK
            if holder is None and await self._takes(key, name, token):
                return Turn.LEAD

    def _name(self, key: bytes) -> str:
        return self._layout.key(self._layout.shard_of(key), "flight", key.hex())
