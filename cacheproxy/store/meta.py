"""What a replica knows of an entry without reading it: enough to list, hide, count and evict it."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import ALIAS_TAG, Partition
from cacheproxy.store.table import size_of

if TYPE_CHECKING:
    from cacheproxy.store.codec import Encoded

MOST_BYTES = 64 * 1024
"""Longest meta that is read; one of an entry with a hundred tags has some 10 KiB."""


class MetaError(StoreUnavailable):
    """These bytes are not what is known of this entry."""


class _Told(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What is told and known alike; `dim` is 0 where an entry has no vector."""

    tenant: str
    namespace: str
    model: str
    user: str
    second: str
    tags: tuple[str, ...]
    created_s: float
    expires_s: float
    gone_s: float
    fill_ms: float
    size_bytes: int
    dim: int


class Meta(_Told, frozen=True, kw_only=True, eq=False):
    """An entry as its replica's directory knows it."""

    id: str
    ver: int
    partition: Partition

    @property
    def parents(self) -> tuple[str, ...]:
        """The entries that it was made from."""
        return tuple(tag.removeprefix(ALIAS_TAG) for tag in self.tags if tag.startswith(ALIAS_TAG))

    @property
    def text(self) -> str:
        """Return "": only the document holds its question."""
        return ""


class _Wire(_Told, array_like=True, frozen=True):
    """A meta as it travels: these four, then what is told. Fields that a later version adds at the end are ignored."""

    id: str
    category: str
    compatibility: bytes
    epoch: str


_decoder = msgspec.msgpack.Decoder(_Wire)


def encode_meta(encoded: Encoded) -> bytes:
    """Return what is known of an entry as it travels."""
    entry = encoded.entry
    return msgspec.msgpack.encode(
        _Wire(
            id=entry.id,
            category=entry.partition.category,
            compatibility=entry.partition.compatibility,
            epoch=entry.partition.epoch,
            tenant=entry.tenant,
            namespace=entry.namespace,
            model=entry.model,
            user=entry.user,
            second=entry.second,
            tags=entry.tags,
            created_s=entry.created_s,
            expires_s=entry.expires_s,
            gone_s=entry.gone_s,
            fill_ms=entry.fill_ms,
            size_bytes=size_of(encoded),
            dim=0 if entry.vector is None else entry.vector.size,
        )
    )


def decode_meta(sealed: object, entry_id: str, version: int) -> Meta:
    """Return what is known of the entry of this id. Raises MetaError for any other bytes."""
    if not isinstance(sealed, bytes) or len(sealed) > MOST_BYTES:
        raise MetaError(f"entry {entry_id[:32]}: no meta, or one above {MOST_BYTES} bytes")
    try:
        wire = _decoder.decode(sealed)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MetaError(f"entry {entry_id[:32]}: not a meta") from exc
    finite = all(abs(one) < float("inf") for one in (wire.created_s, wire.expires_s, wire.gone_s, wire.fill_ms))
    if wire.id != entry_id or not finite or wire.size_bytes < 0:
        raise MetaError(f"entry {entry_id[:32]}: the meta is another entry's, or holds no sound numbers")
    return Meta(
        id=entry_id,
        ver=version,
        partition=_partition(wire.category, wire.compatibility, wire.epoch),
        tenant=sys.intern(wire.tenant),
        namespace=sys.intern(wire.namespace),
        model=sys.intern(wire.model),
        user=wire.user,
        second=sys.intern(wire.second),
        tags=wire.tags,
        created_s=wire.created_s,
        expires_s=wire.expires_s,
        gone_s=wire.gone_s,
        fill_ms=wire.fill_ms,
        size_bytes=wire.size_bytes,
        dim=wire.dim,
    )


@lru_cache(maxsize=4096)
def _partition(category: str, compatibility: bytes, epoch: str) -> Partition:
    return Partition(category=sys.intern(category), compatibility=compatibility, epoch=sys.intern(epoch))
