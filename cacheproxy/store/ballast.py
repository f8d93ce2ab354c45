"""Room on the disk that is kept for removals: a full disk cannot even be told to delete."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from pathlib import Path

SIZE_BYTES = 4 * 1024 * 1024
"""About what the log grows by when one purge job is written."""

_log = structlog.get_logger()


class Ballast:
    """A file of `size_bytes` beside the store's. Released when the disk is full, made again when it no longer is.

    Used by one thread at a time.
    """

    def __init__(self, store: Path, size_bytes: int = SIZE_BYTES) -> None:
        """Make the file. Where there is no room for it to begin with, the store does without."""
        self._path = store.with_name(store.name + ".ballast")
        self._size_bytes = size_bytes
        self.released = False
        """Whether room for removals was taken and could not be put back yet: nothing else may use it up."""
        if not self._make():
            _log.warning("store_ballast_missing", file=str(self._path), size_bytes=size_bytes)

    def release(self) -> bool:
        """Give its room back to the disk; return whether it held any."""
        held = False
        with contextlib.suppress(OSError):
            held = self._path.stat().st_size >= self._size_bytes
            self._path.unlink()
            _log.warning("store_ballast_released", file=str(self._path))
        self.released = self.released or held
        return held

    def restore(self) -> bool:
        """Make it again, if it was released; return whether other writes than removals may go on."""
        if self.released and self._make():
            self.released = False
            _log.info("store_ballast_restored", file=str(self._path))
        return not self.released

    def _make(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink()
            return False
        return True
