"""The install: the directory it owns and the secret its scopes are keyed with."""

from __future__ import annotations

import contextlib
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
_KEY = "install.key"
_LOCK = "proxy.lock"
_REPLICA = "replica-"
_MOST_REPLICAS = 256


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
    path = data_dir / _KEY
    try:
        return _read_or_make(path)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read or made ({exc.strerror}); choose a writable --data-dir") from exc


def known_secret(data_dir: Path) -> bytes | None:
    """Return the key for scopes that this directory was used with, None where it was not. Raises ConfigError."""
    path = data_dir / _KEY
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror}); choose another --data-dir") from exc


def keep_secret(data_dir: Path, secret: bytes) -> None:
    """Use a directory with this key for scopes from now on, if it was used with none. Raises ConfigError."""
    path = data_dir / _KEY
    try:
        _make(path, secret)
    except FileExistsError:
        return
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be made ({exc.strerror}); choose a writable --data-dir") from exc


def name_of(data_dir: Path) -> str:
    """Return a name that this directory alone has, made once; what is counted by it is this directory's own.

    Raises ConfigError.
    """
    path = data_dir / "replica.name"
    try:
        with contextlib.suppress(FileExistsError):
            _make(path, secrets.token_hex(8).encode())
        return path.read_text("ascii", "replace")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be made ({exc.strerror}); choose a writable --data-dir") from exc


def _read_or_make(path: Path) -> bytes:
    secret = secrets.token_bytes(_SECRET_BYTES)
    try:
        _make(path, secret)
    except FileExistsError:
        return _read(path)
    return secret


def _read(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise ConfigError(
            f"{path}: not an install key of {_SECRET_BYTES} bytes; restore it, or remove it to start anew"
        )
    return secret


def _make(path: Path, secret: bytes) -> None:
    """Put a key in place, whole from the first moment it can be seen. Raises FileExistsError where there is one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    try:
        path.hardlink_to(draft)
    finally:
        draft.unlink()


@contextmanager
def claim(data_dir: Path) -> Iterator[Claim]:
    """Own the directory until the block ends, or the process does. Raises ConfigError when another proxy owns it."""
    descriptor = _locked(data_dir)
    if descriptor is None:
        raise ConfigError(
            f"{data_dir} is in use by another proxy: one process owns a data directory; stop it, or give this one "
            "another --data-dir; proxies on a shared store may share one with data.shared"
        )
    try:
        yield Claim(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def own_folder(settings: Settings) -> Iterator[tuple[Path, Claim]]:
    """Own the data directory or, where several proxies share it, the first folder `replica-N` in it that is free.

    Raises ConfigError when it, or every such folder, is owned by others.
    """
    folder = open_data_dir(settings)
    if not settings.data.shared:
        with claim(folder) as owned:
            yield folder, owned
        return
    for number in range(1, _MOST_REPLICAS + 1):
        own = folder / f"{_REPLICA}{number}"
        descriptor = _locked(own)
        if descriptor is not None:
            try:
                yield own, Claim(descriptor)
            finally:
                os.close(descriptor)
            return
    raise ConfigError(f"{folder}: {_MOST_REPLICAS} proxies share it already; give this one another --data-dir")


def _locked(folder: Path) -> int | None:
    """Return a descriptor that locks a folder, made if it is new; None where another process holds the lock."""
    path = folder / _LOCK
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be opened ({exc.strerror}); choose a writable --data-dir") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    return descriptor


class Claim:
    """An owned data directory."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def announce(self, admin_url: str) -> None:
        """Leave word of where this proxy can be asked."""
        os.pwrite(self._descriptor, admin_url.encode(), 0)


def running_admin_url(data_dir: Path) -> str | None:
    """Return the admin URL of a proxy that owns a directory or a folder of a shared one, or None when there is none."""
    folders = sorted(data_dir.glob(f"{_REPLICA}[0-9]*"), key=lambda folder: (len(folder.name), folder.name))
    return next((url for folder in (data_dir, *folders) if (url := _announced(folder))), None)


def _announced(folder: Path) -> str | None:
    try:
        with (folder / _LOCK).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().decode() or None
    except OSError:
        return None
    return None
