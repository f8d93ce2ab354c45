"""The documents in Redis: each call is one script or one scan, and a failure of the engine is the store's.

What is read may be anybody's: it is measured before it is sent, and looked at before it is believed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import SharedUnavailable, StoreUnavailable
from cacheproxy.store.meta import MOST_BYTES, MetaError, decode_meta
from cacheproxy.store.redis import scripts
from cacheproxy.store.redis.messages import MessageError, decode_selector, encode_selector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from cacheproxy.model import Selector
    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.lease import Data
    from cacheproxy.shared.link import Link
    from cacheproxy.shared.script import Script
    from cacheproxy.store.codec import Encoded
    from cacheproxy.store.meta import Meta

TOMB_MS = 3600 * 1000
"""How long a purge refuses fills of its ids one by one: longer than any fill takes."""
AT_ONCE = 256
"""Most entries of one script: some 2 ms of the engine's time."""
SCAN_COUNT = 1000
SLOW_S = 5.0
"""Deadline of what no request waits for."""
_OVERHEAD_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Raised:
    """What a change did: the shard's generation, the version up to which it holds, and its message's id."""

    removed: int
    generation: int
    ver: int
    at: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it was read; nothing of it is checked."""

    ver: int
    record: object
    vector: object


@dataclass(frozen=True, slots=True)
class Head:
    """Where a shard's log ends, its generation, and what is hidden in it up to which version, by name."""

    last: str
    generation: int
    hidden: dict[str, tuple[Selector, int]]


class Documents:
    """Reads and writes of one replica. `foreign` counts values that were ignored because no proxy wrote them so."""

    def __init__(self, link: Link, layout: Layout, *, replica: str, log_length: int, most_bytes: int) -> None:
        self.most_bytes = most_bytes + _OVERHEAD_BYTES
        self.foreign = 0
        self._link = link
        self._layout = layout
        self._replica = replica
        self._log_length = log_length

    def shard_of(self, entry_id: str) -> int:
        """Return which shard an entry is of."""
        return self._layout.shard_of(entry_id)

    async def read(self, entry_id: str) -> Document | None:
        """Return a document; None where there is none, or nothing that may be read. Raises StoreUnavailable."""
        key = self._doc(entry_id)
        with _translated():
            reply = await self._link.run(scripts.READ, [key], [self.most_bytes])
        if not reply or reply[0] is None:
            return None
        ver = _number(reply[0])
        if ver <= 0:
            self.foreign += 1
            return None
        return Document(ver, reply[1], reply[2])

    async def put(
        self, encoded: Encoded, meta: bytes, generation: int, *, life_ms: int, gone_ms: int, data: Data
    ) -> Raised | None:
        """Keep an entry; None where its fill began before a purge of it. Raises StoreUnavailable.

        An engine whose data is not `data` any more takes nothing.
        """
        if encoded.size_bytes > self.most_bytes or len(meta) > MOST_BYTES:
            raise StoreUnavailable(f"entry {encoded.entry.id} is too long to be shared")
        shard, entry_id = self._layout.shard_of(encoded.entry.id), encoded.entry.id
        keys = [
            self._doc(entry_id),
            *self._keys(shard, "dir", "log"),
            self._layout.key(shard, "tomb", entry_id),
            *self._keys(shard, "floor", "ver", "epoch"),
        ]
        args: list[bytes | str | int] = [generation, entry_id, encoded.record, encoded.vector or b"", meta]
        args += [max(1, life_ms), gone_ms, self._log_length, self._replica, data.epoch, data.replication_id]
        with _translated():
            reply = await self._link.run(scripts.PUT, keys, args)
        if reply[0] < 0:
            raise StoreUnavailable("the engine was emptied, or replaced: it is read again first")
        return Raised(0, 0, int(reply[1]), _text(reply[2])) if reply[0] else None

    async def purge(self, shard: int, entry_ids: Sequence[str], bound: int | None = None) -> Raised:
        """Remove entries of one shard, at most AT_ONCE; with a bound, up to that version. Raises StoreUnavailable."""
        keys = [
            *self._keys(shard, "log", "gen", "dir", "ver", "scratch"),
            *map(self._doc, entry_ids),
            *(self._layout.key(shard, "tomb", entry_id) for entry_id in entry_ids),
        ]
        args = ["" if bound is None else bound, TOMB_MS, self._log_length, self._replica, *entry_ids]
        with _translated():
            reply = await self._slowly(scripts.PURGE, keys, args)
        return Raised(int(reply[0]), int(reply[1]), int(reply[2]), _text(reply[3]))

    async def hide(self, shard: int, name: str, selector: Selector) -> Raised:
        """Hide what is meant in one shard. Raises StoreUnavailable."""
        sealed = encode_selector(selector)
        keys = self._keys(shard, "log", "gen", "floor", "ver", "hidden", "scratch")
        with _translated():
            reply = await self._slowly(scripts.HIDE, keys, [name, sealed, self._log_length, self._replica])
        return Raised(0, int(reply[0]), int(reply[1]), _text(reply[2]))

    async def unhide(self, shard: int, name: str) -> None:
        """Note that all that was hidden by this name is removed. Raises StoreUnavailable."""
        with _translated():
            await self._link.slow("HDEL", self._layout.key(shard, "hidden"), name, timeout_s=SLOW_S)

    async def evict(self, shard: int, entries: Sequence[tuple[str, int]]) -> None:
        """Remove entries of one shard, (id, version), that are of that version still. Raises StoreUnavailable."""
        for start in range(0, len(entries), AT_ONCE):
            some = entries[start : start + AT_ONCE]
            keys = [*self._keys(shard, "log", "dir", "scratch"), *(self._doc(entry_id) for entry_id, _ in some)]
            args: list[bytes | str | int] = [self._log_length, self._replica, *(entry_id for entry_id, _ in some)]
            with _translated():
                await self._slowly(scripts.EVICT, keys, [*args, *(str(ver) for _, ver in some)])

    async def tell_used(self, shard: int, uses: bytes) -> None:
        """Tell the others how often entries of a shard were used here. Raises StoreUnavailable."""
        with _translated():
            await self._link.slow(
                *("XADD", self._layout.key(shard, "log"), "MAXLEN", "~", self._log_length, "*"),
                *("op", "used", "uses", uses, "by", self._replica),
                timeout_s=SLOW_S,
            )

    async def head(self, shard: int) -> Head:
        """Return where a shard stands. Raises StoreUnavailable, also where something hidden cannot be read."""
        with _translated():
            last, generation, hidden = await self._slowly(scripts.HEAD, self._keys(shard, "log", "gen", "hidden"), [])
        return Head(_text(last), max(0, _number(generation)), dict(self._hidden(shard, hidden)))

    async def listed(self, shard: int) -> dict[str, tuple[int, int]]:
        """Return all ids of a shard, each with its version and when it is gone, in ms. Raises StoreUnavailable.

        What is there during all of the call is listed; what comes or goes meanwhile may be.
        """
        found: dict[str, tuple[int, int]] = {}
        cursor: bytes | int = 0
        key = self._layout.key(shard, "dir")
        while True:
            with _translated():
                cursor, fields = await self._link.slow("HSCAN", key, cursor, "COUNT", SCAN_COUNT, timeout_s=SLOW_S)
            for raw_id, value in zip(fields[::2], fields[1::2], strict=True):
                ver, _, gone_ms = value[:64].partition(b"|")
                entry_id = raw_id[:64].decode("ascii", "replace")
                if _number(ver) > 0 and _number(gone_ms) >= 0 and entry_id.encode() == raw_id:
                    found[entry_id] = _number(ver), _number(gone_ms)
                else:
                    self.foreign += 1
            if int(cursor) == 0:
                return found

    async def metas(self, shard: int, entry_ids: Sequence[str]) -> AsyncIterator[tuple[str, Meta | None]]:
        """Yield what is known of each of these entries; None where there is none, or none that can be read.

        Raises StoreUnavailable.
        """
        async for entry_id, ver, value in self._fetch(shard, entry_ids, "m", MOST_BYTES):
            if not ver:
                yield entry_id, None
                continue
            try:
                yield entry_id, decode_meta(value, entry_id, ver)
            except MetaError:
                self.foreign += 1
                yield entry_id, None

    async def vectors(self, shard: int, entry_ids: Sequence[str]) -> AsyncIterator[tuple[str, int, object]]:
        """Yield (id, version, blob) of each entry that is there. Raises StoreUnavailable."""
        async for entry_id, ver, value in self._fetch(shard, entry_ids, "v", self.most_bytes):
            if ver:
                yield entry_id, ver, value

    async def _fetch(
        self, shard: int, entry_ids: Sequence[str], field: str, cap: int
    ) -> AsyncIterator[tuple[str, int, object]]:
        del shard  # all of one: the keys say so
        for start in range(0, len(entry_ids), AT_ONCE):
            some = entry_ids[start : start + AT_ONCE]
            with _translated():
                replies = await self._slowly(scripts.FETCH, [self._doc(one) for one in some], [field, cap])
            for entry_id, reply in zip(some, replies, strict=True):
                ver = _number(reply[0]) if reply else 0
                if reply and ver <= 0:
                    self.foreign += 1
                yield entry_id, max(0, ver), reply[1] if len(reply) > 1 else None

    def _hidden(self, shard: int, flat: list[bytes]) -> Iterator[tuple[str, tuple[Selector, int]]]:
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            ver, _, sealed = value.partition(b"|")
            try:
                yield _text(name), (decode_selector(sealed), int(ver))
            except (MessageError, ValueError) as exc:
                self.foreign += 1
                key = self._layout.key(shard, "hidden")
                raise StoreUnavailable(
                    f"{key} names an erasure that this version cannot read, so nothing of this shard is served; where "
                    "no replica of a later version is to end it, remove that field"
                ) from exc

    async def _slowly(self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | int]) -> Any:
        return await self._link.slow_run(script, keys, args, SLOW_S)

    def _doc(self, entry_id: str) -> str:
        return self._layout.key(self._layout.shard_of(entry_id), "doc", entry_id)

    def _keys(self, shard: int, *names: str) -> list[str]:
        return [self._layout.key(shard, name) for name in names]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SharedUnavailable as exc:
        raise StoreUnavailable(exc.message) from exc


def _number(raw: object) -> int:
    """Return a whole number that a proxy wrote; -1 for anything else."""
    if isinstance(raw, int):
        return raw
    return int(raw) if isinstance(raw, bytes) and raw.isdigit() and len(raw) <= 18 else -1


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
