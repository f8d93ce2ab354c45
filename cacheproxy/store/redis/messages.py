"""Messages of a shard's log: what happened to its documents. What is not understood is told, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import Selector
from cacheproxy.store.meta import Meta, decode_meta

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_SELECTOR_BYTES = 1024 * 1024


class MessageError(StoreUnavailable):
    """A message that this version does not understand: another version's, or nobody's."""


@dataclass(frozen=True, slots=True)
class Came:
    """An entry was kept."""

    meta: Meta
    by: str


@dataclass(frozen=True, slots=True)
class Purged:
    """Entries up to this version were removed for good; the shard's generation rose."""

    ids: tuple[str, ...]
    ver: int
    generation: int
    by: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """Entries of these very versions were removed, to make room."""

    ids: tuple[str, ...]
    vers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hidden:
    """What a selector means, up to this version, is served to nobody any more; the shard's generation rose."""

    selector: Selector
    ver: int
    generation: int
    by: str


@dataclass(frozen=True, slots=True)
class Used:
    """How often entries were used on another replica, and when last."""

    uses: dict[str, tuple[int, float]]
    by: str


Change = Came | Purged | Evicted | Hidden | Used


def read_change(fields: Mapping[bytes, bytes]) -> Change:
    """Return what a message says. Raises MessageError for one that is not understood."""
    try:
        op = fields[b"op"]
        by = fields.get(b"by", b"").decode()
        if op == b"put":
            return Came(decode_meta(fields[b"m"], fields[b"id"].decode(), int(fields[b"ver"])), by)
        if op == b"purge":
            return Purged(_ids(fields[b"ids"]), int(fields[b"ver"]), int(fields[b"gen"]), by)
        if op == b"evict":
            vers = tuple(int(one) for one in fields[b"vers"].split(b","))
            ids = _ids(fields[b"ids"])
            if len(ids) == len(vers):
                return Evicted(ids, vers)
        if op == b"hide":
            return Hidden(decode_selector(fields[b"sel"]), int(fields[b"ver"]), int(fields[b"gen"]), by)
        if op == b"used":
            return Used(msgspec.msgpack.decode(fields[b"uses"], type=dict[str, tuple[int, float]]), by)
    except (KeyError, ValueError, msgspec.MsgspecError, StoreUnavailable) as exc:
        raise MessageError(f"a message of the log cannot be read ({type(exc).__name__})") from exc
    raise MessageError("the log holds a message of a kind that this version does not know")


def encode_selector(selector: Selector) -> bytes:
    """Return a selector as it travels; one by words cannot."""
    if selector.text:
        raise StoreUnavailable("words of questions are told to no other replica")
    named = {name: getattr(selector, name) for name in Selector.__slots__ if getattr(selector, name)}
    if selector.before_s is not None:
        named["before_s"] = selector.before_s
    return msgspec.msgpack.encode(named)


def decode_selector(sealed: bytes) -> Selector:
    """Return a selector. Raises MessageError."""
    if len(sealed) > _MOST_SELECTOR_BYTES:
        raise MessageError("a selector of the log is too long")
    try:
        named = msgspec.msgpack.decode(sealed, type=dict[str, object])
        if not named or not set(named) <= set(Selector.__slots__) - {"text"}:
            raise MessageError("a selector of the log names what this version does not know")
        return msgspec.convert(named, Selector)
    except msgspec.MsgspecError as exc:
        raise MessageError("a selector of the log cannot be read") from exc


def _ids(joined: bytes) -> tuple[str, ...]:
    return tuple(joined.decode().split(",")) if joined else ()
