"""Erasures that every replica has to do: kept a week, so that one that was down finds them when it comes back."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.shared.script import Script
from cacheproxy.shared.topics import APPEND

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link


TOPIC = "erasures"
KEPT_S = 7 * 86_400
_READ_TIMEOUT_S = 5.0
_ASK_TIMEOUT_S = 5.0
_MARGIN_MS = 1000

_ASK = Script(
    APPEND
    + """
redis.call('DEL', KEYS[3])
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms - tonumber(ARGV[2]))
if redis.call('ZADD', KEYS[1], 'NX', ms, ARGV[1]) == 1 then
  tell(KEYS[2], ARGV[3], 'erasures', ARGV[1])
end
return ms
"""
)
_DID = Script("""
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], ARGV[1], '1')
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")
# A script whose first write frees memory may write when there is none left.


class Asked(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One erasure, or a piece. `meant` is the selector by its fields, `ids` the entries that went, `by` who began."""

    token: str
    by: str
    asked_s: float
    purges: bool
    ids: tuple[str, ...]
    meant: dict[str, str | float | tuple[str, ...] | None]


class Erasures:
    """The erasures of one install, and who has done them."""

    def __init__(self, link: Link, layout: Layout, *, log_messages: int, replica: str, seen: Path) -> None:
        """`seen` is the file that tells up to when this data directory knows them."""
        self._link = link
        self._layout = layout
        self._all = layout.key("c", "erasures")
        self._scratch = layout.key("c", "scratch")
        self._log = layout.stream("c")
        self._log_messages = log_messages
        self._replica = replica
        self._seen = seen
        self._read_at_ms = 0

    async def ask(self, asked: Asked) -> None:
        """Have every replica do it; the same again changes nothing. Raises SharedUnavailable."""
        keys = [self._all, self._log, self._scratch]
        args: list[bytes | str | int] = [msgspec.msgpack.encode(asked), KEPT_S * 1000, self._log_messages]
        await self._link.slow_run(_ASK, keys, args, _ASK_TIMEOUT_S)

    async def did(self, token: str) -> None:
        """Tell that this replica has done one. Raises SharedUnavailable."""
        key = self._layout.key("c", "erased", token)
        await self._link.run(_DID, [key, self._scratch], [self._replica, KEPT_S * 1000])

    async def done_by(self, token: str) -> frozenset[str]:
        """Return the replicas that have done one. Raises SharedUnavailable."""
        found = await self._link.call("HKEYS", self._layout.key("c", "erased", token))
        return frozenset(name.decode() for name in found)

    async def missed(self) -> list[Asked]:
        """Return those that this data directory has not seen, the oldest first; a new one has nothing to erase.

        Raises SharedUnavailable.
        """
        now_ms = self._read_at_ms = _ms(await self._link.call("TIME"))
        since_ms = await asyncio.to_thread(_read_ms, self._seen)
        if since_ms is None:
            await self._note(now_ms)
            return []
        found: list[bytes] = await self._link.slow(
            "ZRANGEBYSCORE", self._all, since_ms, "+inf", timeout_s=_READ_TIMEOUT_S
        )
        return [asked for raw in found if (asked := read_asked(raw)) is not None]

    async def saw(self) -> None:
        """Note that all that `missed` returned is written down here; what was asked since is missed next time."""
        await self._note(self._read_at_ms - _MARGIN_MS)

    async def _note(self, ms: int) -> None:
        await asyncio.to_thread(_write_ms, self._seen, ms)


def read_asked(raw: bytes) -> Asked | None:
    """Return an erasure as it was told; None for what cannot be one."""
    try:
        return msgspec.msgpack.decode(raw, type=Asked)
    except msgspec.MsgspecError:
        return None


def _ms(told: Sequence[bytes]) -> int:
    return int(told[0]) * 1000 + int(told[1]) // 1000


def _read_ms(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _write_ms(path: Path, ms: int) -> None:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        draft.write_text(str(ms))
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)  # they are done once more after the next start
