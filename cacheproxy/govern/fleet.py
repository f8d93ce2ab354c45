"""The policies that replicas share: their versions in the engine, each kept only as the successor of the newest one.

Two replicas that change policy at once cannot both have the next number: the second is told who was first.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.errors import NotChanged, SharedUnavailable, VersionConflict
from cacheproxy.govern.versions import KEPT, Version
from cacheproxy.shared.script import Script
from cacheproxy.shared.topics import APPEND

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link

TOPIC = "policies"

_APPEND = Script(
    APPEND
    + """
local head = redis.call('HGET', KEYS[1], 'head') or '0'
if head ~= ARGV[1] then
  return head
end
local n = tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'head', ARGV[2], ARGV[2], ARGV[3])
redis.call('HDEL', KEYS[1], tostring(n - tonumber(ARGV[5])))
redis.call('HSETNX', KEYS[2], ARGV[4], ARGV[2])
tell(KEYS[3], ARGV[6], 'policies', ARGV[2])
return ''
"""
)
_NEWEST = Script("""
local head = redis.call('HGET', KEYS[1], 'head')
if not head then
  return false
end
return redis.call('HGET', KEYS[1], head)
""")

_AWAY = (
    "the engine that replicas share cannot be reached, so nothing was changed: the policy in force stays; see "
    "store.url and /admin/v1/replicas"
)


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A version as the engine has it."""

    n: int
    at_s: float
    actor: str
    action: str
    reason: str
    source: str
    pack_json: str


class Fleet:
    """The versions that all replicas have, for one install."""

    def __init__(self, link: Link, layout: Layout, *, log_messages: int) -> None:
        self._link = link
        self._versions = layout.key("c", "policies")
        self._packs = layout.key("c", "packs")
        self._log = layout.stream("c")
        self._log_messages = log_messages

    async def newest(self) -> Version | None:
        """Return the newest version; None where there is none. Raises NotChanged."""
        with _reached():
            raw = await self._link.run(_NEWEST, [self._versions], [])
        return _version(raw) if raw else None

    async def append(self, version: Version, *, after: int) -> None:
        """Keep a version as the successor of version `after`, and tell all replicas.

        Raises VersionConflict where another one is the newest, and NotChanged.
        """
        kept = _Kept(
            n=version.n,
            at_s=version.at_s,
            actor=version.actor,
            action=version.action,
            reason=version.reason,
            source=version.source,
            pack_json=version.pack_json,
        )
        keys = [self._versions, self._packs, self._log]
        args: list[bytes | str | int] = [
            str(after),
            str(version.n),
            msgspec.msgpack.encode(kept),
            version.source,
            str(KEPT),
            self._log_messages,
        ]
        with _reached():
            first = await self._link.run(_APPEND, keys, args)
        if first:
            raise VersionConflict(
                f"version {first.decode()} was put in force at another replica meanwhile; read it again"
            )

    async def known(self, source: str) -> bool:
        """Whether a pack on disk, by its digest, was ever loaded here. Raises NotChanged."""
        with _reached():
            return bool(await self._link.call("HEXISTS", self._packs, source))

    async def find(self, n: int) -> Version | None:
        """Return a version; None where it is not there, or not any more. Raises NotChanged."""
        with _reached():
            raw = await self._link.call("HGET", self._versions, str(n))
        return _version(raw) if raw else None

    async def listed(self) -> list[Version]:
        """Return the versions, newest first, without their packs. Raises NotChanged."""
        with _reached():
            raw: Sequence[bytes] = await self._link.slow("HVALS", self._versions, timeout_s=5.0)
        # Beside the versions the hash holds the number of the newest.
        found = [_version(one) for one in raw if not one.isdigit()]
        return sorted((replace(one, pack_json="") for one in found), key=lambda one: one.n, reverse=True)


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except SharedUnavailable as exc:
        raise NotChanged(_AWAY) from exc


def _version(raw: bytes) -> Version:
    try:
        kept = msgspec.msgpack.decode(raw, type=_Kept)
    except msgspec.MsgspecError as exc:
        raise NotChanged("a version of the policy that replicas share cannot be read by this cacheproxy") from exc
    return Version(
        n=kept.n,
        at_s=kept.at_s,
        actor=kept.actor,
        action=kept.action,
        reason=kept.reason,
        source=kept.source,
        settled=False,
        pack_json=kept.pack_json,
    )
