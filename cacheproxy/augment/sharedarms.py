"""Arms that replicas share: each tells the sums that it learnt, in place of those it told before, and adds the others'.

So nothing is counted twice, in whichever order it is told, and what a replica learnt before it went stays, until
newer replicas take its place.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from cacheproxy.augment.arms import Router
from cacheproxy.errors import ConfigError, SharedUnavailable

if TYPE_CHECKING:
    from cacheproxy.augment.state import AugmentState
    from cacheproxy.ports import Clock
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link

ROUND_S = 5.0
MOST = 64
"""Most replicas whose sums are kept; who told his longest ago goes first."""
_TIMEOUT_S = 2.0
_AGAIN_S = 3600.0
_TIME = struct.Struct(">d")


class SharedArms:
    """Brings what one replica learnt of its arms together with what the others did."""

    def __init__(self, link: Link, layout: Layout, state: AugmentState, replica: str, clock: Clock) -> None:
        """`replica` is this data directory's name, the same after a restart."""
        self._link = link
        self._key = layout.key("c", "arms", state.models)
        self._state = state
        self._replica = replica.encode()
        self._clock = clock
        self._told = b""
        self._told_s = float("-inf")
        self._read: dict[bytes, Router] = {}

    async def tend(self) -> None:
        """Do one round; without the engine each replica goes by what it knows."""
        try:
            await self._tell()
            await self._hear()
        except SharedUnavailable:
            return

    async def _tell(self) -> None:
        raw, now_s = self._state.router.to_bytes(), self._clock.now()
        if raw != self._told or now_s - self._told_s > _AGAIN_S:
            await self._link.slow("HSET", self._key, self._replica, _TIME.pack(now_s) + raw, timeout_s=_TIMEOUT_S)
            self._told, self._told_s = raw, now_s

    async def _hear(self) -> None:
        found: list[bytes] = await self._link.slow("HGETALL", self._key, timeout_s=_TIMEOUT_S)
        told = dict(zip(found[::2], found[1::2], strict=True))
        if told.pop(self._replica, None) is None:  # the engine was emptied
            self._told = b""
        newest = sorted(told, key=lambda name: told[name][: _TIME.size], reverse=True)
        if gone := newest[MOST:]:
            await self._link.slow("HDEL", self._key, *gone, timeout_s=_TIMEOUT_S)
        read = {raw: self._read.get(raw) or _router(raw) for raw in (told[name] for name in newest[:MOST])}
        if read.keys() != self._read.keys():
            self._read = {raw: router for raw, router in read.items() if router is not None}
            self._state.router.hear(list(self._read.values()))


def _router(raw: bytes) -> Router | None:
    """Return a router that knows what another replica told; None where this version cannot read it."""
    try:
        return Router.from_bytes(raw[_TIME.size :])
    except ConfigError:
        return None
