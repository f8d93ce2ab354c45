"""The install: the directory it owns and the secret its scopes are keyed with."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cacheproxy.settings import Settings

_SECRET_BYTES = 32
_LOCK = "proxy.lock"


def open_data_dir(settings: Settings) -> Path:
    """Return the data directory, made private if it is new. Raises ConfigError."""
    path = settings.data.path()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"data.dir: cannot create {path} ({exc.strerror}); give another with --data-dir") from exc
    return path


def install_secret(data_dir: Path) -> bytes:
    """Return this install's key for scopes, made once: losing it orphans every entry. Raises ConfigError."""
    path = data_dir / "install.key"
    try:
        return _read_or_make(path)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read or made ({exc.strerror}); choose a writable --data-dir") from exc


def _read_or_make(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        secret = path.read_bytes()
        if len(secret) != _SECRET_BYTES:
            raise ConfigError(
                f"{path}: not an install key of {_SECRET_BYTES} bytes; restore it, or remove it to start anew"
            ) from None
        return secret
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret := secrets.token_bytes(_SECRET_BYTES))
        file.flush()
        os.fsync(descriptor)
    return secret


@contextmanager
def claim(data_dir: Path) -> Iterator[Claim]:
    """Own the directory until the block ends, or the process does. Raises ConfigError when another proxy owns it."""
    path = data_dir / _LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be opened ({exc.strerror}); choose a writable --data-dir") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ConfigError(
                f"{data_dir} is in use by another proxy: one process owns a data directory; stop it, run a single "
                "worker, or give this one another --data-dir"
            ) from exc
        os.ftruncate(descriptor, 0)
        yield Claim(descriptor)
    finally:
        os.close(descriptor)


class Claim:
    """An owned data directory."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def announce(self, admin_url: str) -> None:
        """Leave word of where this proxy can be asked."""
        os.pwrite(self._descriptor, admin_url.encode(), 0)


def running_admin_url(data_dir: Path) -> str | None:
    """Return the admin URL of the proxy that owns a directory, or None when there is none."""
    try:
        with (data_dir / _LOCK).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().decode() or None
    except OSError:
        return None
    return None
