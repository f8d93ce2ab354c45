"""What the keys are called: one hash tag a shard, nothing of a caller's in a name unescaped."""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Literal

from cacheproxy.errors import ConfigError

Log = int | Literal["c"]
"""A shard of documents, or `c`: what is not a document (policies, keys, leases of work)."""

_PREFIX = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_LONGEST = 128


class Layout:
    """Names of keys under one prefix. Raises ConfigError for a prefix that could be mistaken for something else."""

    def __init__(self, prefix: str, shards: int) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(
                "store.prefix: give 1 to 64 lower-case letters, digits, `_`, `.` or `-`, beginning with one of the "
                f"first two kinds, got {prefix!r}"
            )
        self.prefix = prefix
        self.shards = shards
        self.documents: tuple[Log, ...] = tuple(range(shards))
        self.logs: tuple[Log, ...] = (*range(shards), "c")

    def shard_of(self, entry_id: str | bytes) -> int:
        """Return the shard of a document: the same in every version and on every machine."""
        raw = entry_id.encode() if isinstance(entry_id, str) else entry_id
        return zlib.crc32(raw) % self.shards

    def key(self, log: Log, *parts: str) -> str:
        """Return a key of that log's slot, such as `{cacheproxy:3}:doc:ab12`."""
        return ":".join((f"{{{self.prefix}:{log}}}", *map(escaped, parts)))

    def stream(self, log: Log) -> str:
        """Return the key of the log itself."""
        return self.key(log, "log")


def escaped(part: str) -> str:
    """Return a part of a key that cannot be read as two, nor move it to another slot; long ones are hashed."""
    if _PLAIN.fullmatch(part):
        return part
    raw = part.encode("utf-8", "surrogatepass")
    if len(raw) <= _LONGEST // 3:
        return "".join(chr(byte) if _PLAIN.fullmatch(chr(byte)) else f"%{byte:02X}" for byte in raw)
    return "%" + hashlib.sha256(raw).hexdigest()
