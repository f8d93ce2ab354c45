"""One process per file."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class FileLock:
    """An exclusive lock on `<file>.lock`, held until `release` or the end of the process, however it ends.

    The lock file stays: removing it would let two processes lock two files of one name.
    """

    def __init__(self, file: Path) -> None:
        """Take the lock. Raises ConfigError when another process (or another store of this one) holds it."""
        path = file.with_name(file.name + ".lock")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise ConfigError(f"{path}: cannot be created ({exc.strerror}); choose a writable --data-dir") from exc
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise ConfigError(
                f"{file} is in use by process {owner or 'unknown'}: one process owns a store file; stop it, "
                "run a single worker, or give this one another --data-dir or --store"
            ) from exc
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode("ascii"), 0)

    def release(self) -> None:
        """Let another process in."""
        os.close(self._descriptor)
