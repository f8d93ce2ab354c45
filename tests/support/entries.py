"""Entries for tests of stores."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from cacheproxy.model import Entry, Partition, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

NOW_S = 1_800_000_000.0
EPOCH = "minilm-fp32-0123456789abcdef"

BODY: dict[str, Any] = {
    "id": "chatcmpl-1",
    "created": 1_800_000_000,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Paris \u2014 of course \U0001f5fc", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"total_tokens": 12, "prompt_tokens": 8, "completion_tokens": 4},
}


def entry_id(key: str) -> str:
    """Return the id of the entry made for `key`."""
    return hashlib.sha256(key.encode()).digest()[:16].hex()


def make_entry(
    key: str,
    *,
    version: int = 0,
    body: Mapping[str, Any] | None = None,
    epoch: str = EPOCH,
    dim: int = 8,
    created_s: float = NOW_S,
    ttl_s: float = 3600.0,
    stale_s: float = 0.0,
    padding: int = 0,
) -> Entry:
    """Return the entry of `key`; those of other keys or versions differ in every part.

    `dim` 0 means no vector. It may be served stale for `stale_s`, for half of that by the backend's own leave.
    """
    fingerprint = hashlib.sha256(key.encode()).digest()
    answer = dict(BODY if body is None else body) | {"key": key, "version": version}
    if padding:
        answer["padding"] = "x" * padding
    return Entry(
        id=entry_id(key),
        fingerprint=fingerprint,
        partition=Partition(category="default", compatibility=hashlib.sha256(fingerprint).digest(), epoch=epoch),
        tenant=hashlib.sha256(b"tenant" + fingerprint).hexdigest(),
        text=f"what is {key}?",
        reply=Reply(body=answer, source="body"),
        created_s=created_s,
        expires_s=created_s + ttl_s,
        fill_ms=12.5 + version,
        unseen=b"\x00unseen",
        vector=unit_vector(key, version, dim) if dim else None,
        tags=("a", key),
        stale_until_s=created_s + ttl_s + stale_s,
        revalidate_s=stale_s / 2,
        on_error_s=stale_s / 4,
        vary=("accept-language", key),
        variant=hashlib.sha256(b"variant" + fingerprint).digest(),
    )


def unit_vector(key: str, version: int, dim: int) -> NDArray[np.float32]:
    """Return the vector of an entry."""
    seed = int.from_bytes(hashlib.sha256(f"{key}/{version}".encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    unit: NDArray[np.float32] = vector / np.float32(np.linalg.norm(vector))
    return unit


def same(left: Entry | None, right: Entry | None) -> bool:
    """Whether two entries agree in every part: order of keys, types of numbers and bits of the vector included."""
    if left is None or right is None:
        return left is right
    return _spelled(left) == _spelled(right)


def _spelled(entry: Entry) -> str:
    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    vector = fields.pop("vector")
    fields["reply"] = (dict(entry.reply.body), entry.reply.source)
    return repr(fields) + ("" if vector is None else f"{vector.dtype} {vector.tobytes().hex()}")
