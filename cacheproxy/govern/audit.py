"""The audit log: who changed what, when, from what to what. Appended to, never rewritten.

Each line is one JSON object that holds the hash of the line before it, so that a line taken out or altered shows
(`broken_at`). The log is a row of files: the newest is `audit.jsonl`, `audit.jsonl.1` the one before, and so on.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from cacheproxy.errors import ConfigError, NotChanged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cacheproxy.ports import Clock

log = structlog.get_logger()

FILE_BYTES = 8 * 1024 * 1024
KEPT_FILES = 8
"""Together 64 MB: what is older goes when a file is full."""

_FIRST = "0" * 64
_TIMEOUT_S = 5.0
_encode = msgspec.json.Encoder(order="deterministic").encode


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log. `hash` is SHA-256 of the line without it; `prev` is the hash of the line before."""

    n: int
    at: str
    """UTC, ISO 8601."""
    actor: str
    action: str
    target: str
    before: Any
    after: Any
    outcome: str
    prev: str
    hash: str = ""


class AuditLog:
    """The log of one data directory, which one process owns. Nothing written to it may hold prompt text or keys."""

    def __init__(self, path: Path, clock: Clock, *, file_bytes: int = FILE_BYTES) -> None:
        """Open or create the log (mode 0600) and go on where it ends. Raises ConfigError when it cannot be used."""
        self._path = path
        self._clock = clock
        self._file_bytes = file_bytes
        self._lock = asyncio.Lock()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._n, self._hash = self._end()
        except OSError as exc:
            raise ConfigError(f"{path}: cannot be used for the audit log ({exc.strerror}); check the disk") from exc
        self._writing: asyncio.Future[None] | None = None  # a write whose end nobody has seen

    async def record(
        self, actor: str, action: str, target: str, *, before: Any = None, after: Any = None, outcome: str = "done"
    ) -> Deed:
        """Append one line; return once it is on disk. Raises NotChanged: what was to be done should then not be."""
        async with self._lock:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await self._settle()
                    deed = self._next(actor, action, target, before, after, outcome)
                    self._writing = asyncio.ensure_future(asyncio.to_thread(self._append, _encode(deed) + b"\n"))
                    await asyncio.shield(self._writing)
            except (OSError, TimeoutError) as exc:
                log.error("audit_not_written", reason=type(exc).__name__)  # noqa: TRY400 - a disk's word, no bug
                raise NotChanged("the audit log cannot be written, so nothing was changed; check the disk") from exc
            self._writing = None
            self._n, self._hash = deed.n, deed.hash
            return deed

    async def page(self, *, before: int | None = None, limit: int = 100) -> tuple[list[Deed], int | None]:
        """Return up to `limit` lines, newest first, older than line `before`; and where the next page begins, or None.

        Raises NotChanged when the log cannot be read.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                found = await asyncio.to_thread(self._read, before, limit + 1)
        except (OSError, TimeoutError) as exc:
            raise NotChanged("the audit log cannot be read; check the disk") from exc
        page = found[:limit]
        return page, page[-1].n if len(found) > limit else None

    async def _settle(self) -> None:
        """After a write that failed, came late or was left, see what the log ends with."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            self._writing.exception()  # told already, or nobody waited
            self._n, self._hash = await asyncio.to_thread(self._end)
            self._writing = None

    def _next(self, actor: str, action: str, target: str, before: Any, after: Any, outcome: str) -> Deed:
        deed = Deed(
            n=self._n + 1,
            at=datetime.fromtimestamp(self._clock.now(), UTC).isoformat(timespec="milliseconds"),
            actor=actor,
            action=action,
            target=target,
            before=before,
            after=after,
            outcome=outcome,
            prev=self._hash,
        )
        return msgspec.structs.replace(deed, hash=_hash_of(deed))

    def _end(self) -> tuple[int, str]:
        last = next(_backwards(self._path), None)
        return (last.n, last.hash) if last else (0, _FIRST)

    def _read(self, before: int | None, limit: int) -> list[Deed]:
        found: list[Deed] = []
        for deed in _backwards(self._path):
            if before is None or deed.n < before:
                found.append(deed)
                if len(found) >= limit:
                    break
        return found

    def _append(self, line: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(line) > self._file_bytes:
            self._rotate()
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a line that was cut stays, and is skipped: nothing is ever taken out
            if os.write(descriptor, line) != len(line):
                raise OSError("the disk took only a part")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rotate(self) -> None:
        files = _files(self._path)
        for at in range(len(files) - 1, -1, -1):
            if at + 1 >= KEPT_FILES:
                files[at].unlink()
            else:
                files[at].replace(self._path.with_name(f"{self._path.name}.{at + 1}"))


def broken_at(path: Path) -> int | None:
    """Return the number of the newest line that is not what it was, or misses the line before it; None if whole.

    The oldest line still kept is believed: what came before it has gone.
    """
    follower: Deed | None = None
    for deed in _backwards(path):
        if deed.hash != _hash_of(deed):
            return deed.n
        if follower is not None and (follower.prev != deed.hash or follower.n != deed.n + 1):
            return follower.n
        follower = deed
    return None


def _hash_of(deed: Deed) -> str:
    return hashlib.sha256(_encode(msgspec.structs.replace(deed, hash=""))).hexdigest()


def _files(path: Path) -> list[Path]:
    """Return the files that exist, newest first."""
    numbered = [path.with_name(f"{path.name}.{at}") for at in range(1, KEPT_FILES)]
    return [file for file in (path, *numbered) if file.exists()]


def _backwards(path: Path) -> Iterator[Deed]:
    """Yield every whole line, newest first. Raises OSError."""
    for file in _files(path):
        for line in reversed(file.read_bytes().splitlines()):
            try:
                yield msgspec.json.decode(line, type=Deed)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue  # cut by a crash; the chain leads over it
