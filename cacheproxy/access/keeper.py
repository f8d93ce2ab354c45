"""Keeps the gate in step with its files: the keys, which an operator changes, and the tokens of the day."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import msgspec
import structlog

from cacheproxy.access.gate import Gate
from cacheproxy.access.keyfile import read_keys, replace_file, stamp_of
from cacheproxy.access.keyring import Keyring, ring_of
from cacheproxy.access.limits import day_of
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cacheproxy.ports import Clock
    from cacheproxy.settings import Settings

log = structlog.get_logger()

_EPOCH = date(1970, 1, 1).toordinal()
_OTHERS = 0o077


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens spent on one UTC day, by key id."""

    day: date
    tokens: dict[str, int]


class Keeper:
    """Owns the gate. `tend` is to be called often: it reads what changed and writes what was spent."""

    def __init__(self, path: Path, secret: bytes, clock: Clock, environ: Mapping[str, str]) -> None:
        """Read the keys. Raises ConfigError naming file, entry and key."""
        self._path = path
        self._secret = secret
        self._clock = clock
        self._environ = environ
        self._stamp = stamp_of(path)
        self._written = Spent(day=_today(clock), tokens={})
        self.gate = Gate(self._read(), clock)
        self._restore()
        if path.stat().st_mode & _OTHERS:
            log.warning("keys_file_open", path=str(path), what="others on this machine can read it; chmod 600")

    async def tend(self) -> None:
        """Read the keys again if their file changed; write the day's tokens if they did."""
        stamp = await asyncio.to_thread(stamp_of, self._path)
        if stamp != self._stamp:
            self._stamp = stamp  # of before reading: a change meanwhile is another change
            found = await asyncio.to_thread(self._attempt)
            if self._stamp == stamp:  # else `reload` read a newer file meanwhile
                self._take(found)
        spent = self._spent()
        if spent != self._written:
            await asyncio.to_thread(self._write, spent)

    def reload(self) -> None:
        """Read the keys again now; a file with problems leaves the old ones in force, and a word in the log."""
        self._stamp = stamp_of(self._path)
        self._take(self._attempt())

    def save(self) -> None:
        """Write the tokens of the day now, if they changed: a restart must not give them out again."""
        spent = self._spent()
        if spent != self._written:
            self._write(spent)

    def _attempt(self) -> Keyring | ConfigError:
        try:
            return self._read()
        except ConfigError as exc:
            return exc

    def _take(self, found: Keyring | ConfigError) -> None:
        if isinstance(found, ConfigError):
            log.error("keys_refused", reason=found.message)
            return
        self.gate.replace(found)
        log.info("keys_read", keys=len(found))

    def _spent(self) -> Spent:
        return Spent(day=_today(self._clock), tokens=self.gate.accounts.spent(self._clock.now()))

    def _write(self, spent: Spent) -> None:
        try:
            replace_file(spent_path(self._path), msgspec.json.encode(spent))
        except OSError as exc:
            log.warning("spent_tokens_not_written", reason=exc.strerror)
            return
        self._written = spent

    def _read(self) -> Keyring:
        return ring_of(read_keys(self._path, self._secret), self._secret, self._environ)

    def _restore(self) -> None:
        spent = read_spent(self._path)
        if spent is not None and spent.day == self._written.day:
            self.gate.accounts.restore(spent.day.toordinal() - _EPOCH, spent.tokens)
            self._written = spent


def open_keeper(settings: Settings, data_dir: Path, secret: bytes, clock: Clock) -> Keeper | None:
    """Return the keeper of the virtual keys, or None where callers bring the backend's. Raises ConfigError."""
    if settings.access.mode == "pass":
        return None
    return Keeper(keys_path(settings, data_dir), secret, clock, os.environ)


def keys_path(settings: Settings, data_dir: Path) -> Path:
    """Return where the virtual keys are kept."""
    file = settings.access.file
    return type(data_dir)(file).expanduser() if file else data_dir / "keys.json"


def spent_path(keys: Path) -> Path:
    """Return where the tokens of the day are kept: beside the keys."""
    return keys.with_name(f"{keys.stem}.spent.json")


def read_spent(keys: Path) -> Spent | None:
    """Return the tokens last written, or None when there are none or the file is damaged (then logged)."""
    path = spent_path(keys)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Spent)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        log.warning("spent_tokens_not_read", path=str(path), what="the day's token budgets start anew")
        return None


def _today(clock: Clock) -> date:
    return datetime.fromtimestamp(day_of(clock.now()) * 86_400, UTC).date()
