"""The record of one entry: versioned, checksummed bytes that are either exactly what was kept or refused.

A record is `magic(4) version(1) crc32(4) payload`, the payload a msgpack array. The answer's body stays JSON inside it,
so that key order, integers of any size and floats come back as they were. The vector is a blob of its own,
`crc32(4) float32[dim]` (little-endian), so that an index is rebuilt without reading answers; its checksum also covers
the entry's id and partition.

Version 2 added, at the end of the payload, what staleness and `Vary` need, version 3 whose entry it is (namespace,
model, user) and its second category, version 4 what was said before its question and where its answer is from; an
older record reads as an entry without these.

CRC-32 finds every changed byte and every burst up to four bytes, for a fifth of BLAKE2b's time. It guards against
damage, not against somebody who can write the file.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cacheproxy.errors import StoreUnavailable
from cacheproxy.model import Entry, Partition, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAGIC = b"cpxe"
VERSION = 4

_HEAD = struct.Struct("<4sBI")
_CRC = struct.Struct("<I")
_FOUR_BYTE_CHARACTER = re.compile(rb"[\xf0-\xf7]")
# What an entry occupies beside its text in CPython 3.11: its own objects, each JSON object, each member or item.
_ENTRY_BYTES = 1650
_OBJECT_BYTES = 200
_NODE_BYTES = 40


class RecordError(StoreUnavailable):
    """These bytes are not the record that was asked for, or this entry cannot become one."""


class LaterRecord(RecordError):
    """This record is of a later version: nothing is wrong with it, and it is left to those who can read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An entry as it is written, and the entry as it will be read back."""

    entry: Entry
    record: bytes
    vector: bytes | None
    footprint_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes of record and vector."""
        return len(self.record) + len(self.vector or b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """An entry as it was read; `footprint_bytes` estimates what it occupies in memory."""

    entry: Entry
    footprint_bytes: int


class Payload(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a record holds; the answer's `body` is JSON still."""

    id: str
    fingerprint: bytes
    tenant: str
    category: str
    compatibility: bytes
    epoch: str
    dim: int
    text: str
    source: str
    created_s: float
    expires_s: float
    fill_ms: float
    unseen: bytes
    tags: tuple[str, ...]
    body: bytes
    stale_until_s: float = 0.0
    revalidate_s: float = 0.0
    on_error_s: float = 0.0
    vary: tuple[str, ...] = ()
    variant: bytes = b""
    namespace: str = ""
    model: str = ""
    user: str = ""
    second: str = ""
    chain: tuple[str, ...] = ()
    origin: str = "backend"
    policy: int = 0
    principals: tuple[str, ...] = ()


_payload_decoder = msgspec.msgpack.Decoder(Payload)
_body_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


def encode(entry: Entry) -> Encoded:
    """Return an entry's bytes. Its body must be what a JSON decoder yields.

    Raises RecordError for a body that JSON cannot hold, or a vector that is not one row of finite numbers.
    """
    floats = _floats(entry)
    try:
        body = _encode_body(entry.reply.body)
        payload = msgspec.msgpack.encode(
            Payload(
                id=entry.id,
                fingerprint=entry.fingerprint,
                tenant=entry.tenant,
                category=entry.partition.category,
                compatibility=entry.partition.compatibility,
                epoch=entry.partition.epoch,
                dim=0 if floats is None else floats.size,
                text=entry.text,
                source=entry.reply.source,
                created_s=entry.created_s,
                expires_s=entry.expires_s,
                fill_ms=entry.fill_ms,
                unseen=entry.unseen,
                tags=entry.tags,
                body=body,
                stale_until_s=entry.stale_until_s,
                revalidate_s=entry.revalidate_s,
                on_error_s=entry.on_error_s,
                vary=entry.vary,
                variant=entry.variant,
                namespace=entry.namespace,
                model=entry.model,
                user=entry.user,
                second=entry.second,
                chain=entry.chain,
                origin=entry.origin,
                policy=entry.policy,
                principals=entry.principals,
            )
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise RecordError(f"entry {entry.id} cannot be kept: its answer is not JSON ({type(exc).__name__})") from exc
    vector = None if floats is None else _seal_vector(floats.tobytes(), entry)
    return Encoded(
        # A vector that is a row of the encoder's batch would keep the whole batch alive.
        entry=replace(entry, vector=None if vector is None else _floats_of(vector)),
        record=_HEAD.pack(MAGIC, VERSION, zlib.crc32(payload, VERSION)) + payload,
        vector=vector,
        footprint_bytes=_footprint(body, floats) + _texts(entry),
    )


def decode(record: object, vector: object, entry_id: str) -> Decoded:
    """Return the entry these two blobs hold, which is the one of this id.

    Raises RecordError for anything else: damage, another entry's record or vector, an unknown version.
    """
    payload = open_record(record, entry_id)
    partition = Partition(category=payload.category, compatibility=payload.compatibility, epoch=payload.epoch)
    floats = None if vector is None else decode_vector(vector, partition, entry_id)
    if payload.dim != (0 if floats is None else floats.size):
        raise RecordError(f"entry {entry_id}: the vector is not the record's")
    try:
        body = _body_decoder.decode(payload.body)
    except msgspec.DecodeError as exc:
        raise RecordError(f"entry {entry_id}: the record's answer is not JSON") from exc
    entry = Entry(
        id=payload.id,
        fingerprint=payload.fingerprint,
        partition=partition,
        tenant=payload.tenant,
        text=payload.text,
        reply=Reply(body=body, source=payload.source),
        created_s=payload.created_s,
        expires_s=payload.expires_s,
        fill_ms=payload.fill_ms,
        unseen=payload.unseen,
        vector=floats,
        tags=payload.tags,
        stale_until_s=payload.stale_until_s,
        revalidate_s=payload.revalidate_s,
        on_error_s=payload.on_error_s,
        vary=payload.vary,
        variant=payload.variant,
        namespace=payload.namespace,
        model=payload.model,
        user=payload.user,
        second=payload.second,
        chain=payload.chain,
        origin=payload.origin,
        policy=payload.policy,
        principals=payload.principals,
    )
    return Decoded(entry=entry, footprint_bytes=_footprint(payload.body, floats) + _texts(entry))


def decode_vector(vector: object, partition: Partition, entry_id: str) -> NDArray[np.float32]:
    """Return this entry's vector in this partition, shape (dim,), read-only. Raises RecordError for any other blob."""
    if not isinstance(vector, bytes) or len(vector) <= _CRC.size or len(vector) % 4:
        raise RecordError(f"entry {entry_id}: not a vector")
    (checksum,) = _CRC.unpack_from(vector)
    if checksum != _vector_checksum(memoryview(vector)[_CRC.size :], partition, entry_id):
        raise RecordError(f"entry {entry_id}: the vector's checksum does not match")
    return _floats_of(vector)


def open_record(record: object, entry_id: str) -> Payload:
    """Return what the record of this entry holds, its answer unread. Raises RecordError for any other blob."""
    if not isinstance(record, bytes) or len(record) < _HEAD.size:
        raise RecordError(f"entry {entry_id}: not a record")
    magic, version, checksum = _HEAD.unpack_from(record)
    if magic != MAGIC or not 1 <= version <= VERSION:
        raise (LaterRecord if magic == MAGIC and version > VERSION else RecordError)(
            f"entry {entry_id}: a record of version {version}; this build reads version {VERSION} and older"
        )
    sealed = memoryview(record)[_HEAD.size :]
    if zlib.crc32(sealed, version) != checksum:
        raise RecordError(f"entry {entry_id}: the record's checksum does not match")
    try:
        payload = _payload_decoder.decode(sealed)
    except msgspec.DecodeError as exc:
        raise RecordError(f"entry {entry_id}: the record is not of version {version}'s form") from exc
    if payload.id != entry_id:
        raise RecordError(f"entry {entry_id}: the record is another entry's")
    return payload


def _encode_body(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(body if isinstance(body, dict) else dict(body))


def _floats(entry: Entry) -> NDArray[np.float32] | None:
    if entry.vector is None:
        return None
    floats = np.asarray(entry.vector, dtype="<f4")
    if floats.ndim != 1 or not floats.size or not np.isfinite(floats).all():
        raise RecordError(f"entry {entry.id} cannot be kept: its vector has shape {floats.shape} or is not finite")
    return floats


def _seal_vector(floats: bytes, entry: Entry) -> bytes:
    return _CRC.pack(_vector_checksum(floats, entry.partition, entry.id)) + floats


def _vector_checksum(floats: bytes | memoryview, partition: Partition, entry_id: str) -> int:
    owner = msgspec.msgpack.encode((entry_id, partition.category, partition.compatibility, partition.epoch))
    return zlib.crc32(floats, zlib.crc32(owner))


def _floats_of(vector: bytes) -> NDArray[np.float32]:
    return np.frombuffer(vector, dtype="<f4", offset=_CRC.size).astype(np.float32, copy=False)


def _footprint(body: bytes, floats: NDArray[np.float32] | None) -> int:
    """Estimate the memory of an entry with this body; an upper estimate for text that is not ASCII."""
    width = 1
    if not body.isascii():
        width = 4 if _FOUR_BYTE_CHARACTER.search(body) else 2
    objects = body.count(b"{")
    structure = objects * _OBJECT_BYTES + (objects + body.count(b",")) * _NODE_BYTES
    return _ENTRY_BYTES + len(body) * width + structure + (0 if floats is None else floats.nbytes)


def _texts(entry: Entry) -> int:
    """Return what the texts of an entry take beyond a few words, which _ENTRY_BYTES counts."""
    told = (entry.text, *entry.chain)
    short = (*entry.tags, *entry.principals)
    return sum(len(text) * (1 if text.isascii() else 4) for text in told) + sum(map(len, short))
