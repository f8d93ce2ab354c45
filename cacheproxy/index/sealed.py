"""Files that are either whole or refused: a fixed prefix with magic, version, size and SHA-256, then the body."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING

from cacheproxy.errors import IndexUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAGIC = b"CPINDEX\n"
VERSION = 1
PREFIX = struct.Struct("<8sIQ32s")
"""Magic, version, body size in bytes, SHA-256 of the body."""


class SnapshotRefused(IndexUnavailable):
    """A snapshot file cannot be used; `reason` is one word or two for logs and metrics."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name}: refused ({reason}); the index is rebuilt from the store")
        self.reason = reason


def write_sealed(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write a new file, readable by its owner only, and wait until it is on disk. Raises OSError."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(PREFIX.pack(MAGIC, VERSION, sum(len(part) for part in parts), digest.digest()))
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def read_sealed(path: Path) -> memoryview:
    """Return the body. Raises SnapshotRefused for a missing, foreign, other-version, truncated or altered file."""
    try:
        content = memoryview(path.read_bytes())
    except OSError as exc:
        raise SnapshotRefused(path, "unreadable") from exc
    if len(content) < PREFIX.size:
        raise SnapshotRefused(path, "truncated")
    magic, version, size, digest = PREFIX.unpack_from(content)
    body = content[PREFIX.size :]
    if magic != MAGIC:
        raise SnapshotRefused(path, "magic")
    if version != VERSION:
        raise SnapshotRefused(path, "version")
    if len(body) != size:
        raise SnapshotRefused(path, "truncated")
    if hashlib.sha256(body).digest() != digest:
        raise SnapshotRefused(path, "checksum")
    return body


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
