"""Owing: erasures that are not finished, in a file beside, so that a restart finishes them. No text is written.

The file holds all of them, and one beside it (`.tail`) what changed since, a line each: writing one down costs the same
however many are owed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import structlog

from cacheproxy.model import Selector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.get_logger()

_LEAST_LINES = 64
"""So many changes are appended before all is written anew, or twice as many as erasures are owed."""


class Owed(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure that is not finished: what it means, since when, and in which parts it is left to do."""

    asked_s: float
    parts: tuple[str, ...]
    ids: tuple[str, ...]
    meant: dict[str, str | float | tuple[str, ...] | None]
    descendants: bool = False
    token: str = ""
    """What the replica calls it that began it."""

    def selector(self) -> Selector:
        """Return what it means: of what is new since it was asked for, nothing."""
        selector = msgspec.convert(self.meant, Selector)
        before_s = self.asked_s if selector.before_s is None else min(selector.before_s, self.asked_s)
        return replace(selector, before_s=before_s)


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change: what is owed by now of a token, or nothing any more."""

    token: str
    owed: Owed | None = None


def new_token() -> str:
    """Return a new name for an erasure."""
    return secrets.token_hex(8)


class Owing:
    """What is owed, by token, in the order in which it was asked for. `save` is to be called after changes."""

    def __init__(self, path: Path) -> None:
        """Read what the file owes."""
        self._path = path
        self._tail = path.with_name(path.name + ".tail")
        self._owed = _read(path, self._tail)
        self._lines: list[_Line] = []
        self._appended = 0
        self._whole = True  # the first change writes all: what a crash left half is mended by it
        self._writing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._owed)

    def __contains__(self, token: str) -> bool:
        return token in self._owed

    def __iter__(self) -> Iterator[Owed]:
        """Yield them as of now."""
        yield from list(self._owed.values())

    def get(self, token: str) -> Owed | None:
        """Return what is owed of one."""
        return self._owed.get(token)

    def put(self, owed: Owed) -> None:
        """Owe this, in place of what was owed of its token."""
        self._owed[owed.token] = owed
        self._lines.append(_Line(owed.token, owed))

    def discard(self, token: str) -> None:
        """Owe nothing of a token any more."""
        if self._owed.pop(token, None) is not None:
            self._lines.append(_Line(token))

    async def save(self) -> None:
        """Write changes down. Where that fails they are still done, unless this process ends before."""
        async with self._writing:
            lines, self._lines = self._lines, []
            if not lines:
                return
            self._appended += len(lines)
            whole = self._whole or not self._owed or self._appended > max(_LEAST_LINES, 2 * len(self._owed))
            try:
                if whole:
                    await asyncio.to_thread(_save, self._path, self._tail, list(self._owed.values()))
                    self._appended = 0
                else:
                    await asyncio.to_thread(_append, self._tail, lines)
                self._whole = False
            except OSError as exc:
                self._whole = True
                log.warning("erasure_journal_failed", reason=exc.strerror)


def _read(path: Path, tail: Path) -> dict[str, Owed]:
    owed: dict[str, Owed] = {}
    try:
        for one in msgspec.json.decode(path.read_bytes(), type=list[Owed]):
            token = one.token or new_token()
            owed[token] = msgspec.structs.replace(one, token=token)
    except FileNotFoundError:
        pass
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        log.error("erasure_journal_unreadable", file=path.name, reason=type(exc).__name__)  # noqa: TRY400 - a disk's word, no bug
    with contextlib.suppress(OSError):
        for raw in tail.read_bytes().splitlines():
            try:
                line = msgspec.json.decode(raw, type=_Line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                break  # the last line of a crash
            if line.owed is None:
                owed.pop(line.token, None)
            else:
                owed[line.token] = line.owed
    return owed


def _save(path: Path, tail: Path, owed: list[Owed]) -> None:
    if owed:
        draft = path.with_name(path.name + ".new")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        _write(draft, os.O_CREAT | os.O_EXCL, msgspec.json.encode(owed))
        draft.replace(path)
    else:
        path.unlink(missing_ok=True)
    tail.unlink(missing_ok=True)  # read once more after a crash it changes nothing: it ends as the file is


def _append(tail: Path, lines: list[_Line]) -> None:
    _write(tail, os.O_CREAT | os.O_APPEND, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def _write(path: Path, flags: int, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
