"""The install: the directory it owns and the secret its scopes are keyed with."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.settings import Settings

_SECRET_BYTES = 32


def open_data_dir(settings: Settings) -> Path:
    """Return the data directory, made private if it is new. Raises ConfigError."""
    path = settings.data.path()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"data.dir: cannot create {path} ({exc.strerror}); give another with --data-dir") from exc
    return path


def install_secret(data_dir: Path) -> bytes:
    """Return this install's key for scopes, made once. Losing it orphans every entry, exposing it lets keys be tested."""
    path = data_dir / "install.key"
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
