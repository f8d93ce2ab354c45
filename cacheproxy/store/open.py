"""From a setting to a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError
from cacheproxy.store.memory import MemoryStore
from cacheproxy.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from cacheproxy import settings
    from cacheproxy.ports import Clock

DEFAULT_FILE = "entries.sqlite3"


def open_store(limits: settings.Store, data_dir: Path, clock: Clock) -> SqliteStore | MemoryStore:
    """Return the EntryStore that `limits.url` names, to be entered with `async with`; nothing is opened before that.

    - empty: `entries.sqlite3` in the data directory
    - `sqlite:///entries.db`: a path relative to the working directory (three slashes, as in SQLAlchemy)
    - `sqlite:////var/lib/cacheproxy/entries.db`: an absolute path (four slashes)
    - `memory://`: nothing outlives the process

    Raises ConfigError for anything else.
    """
    url = limits.url
    if not url:
        return SqliteStore(data_dir / DEFAULT_FILE, limits, clock)
    if url == "memory://":
        return MemoryStore(limits, clock)
    file = url.removeprefix("sqlite:///")
    if file in {url, ""} or file.endswith("/") or any(mark in file for mark in "?#\0"):
        # Only the scheme is named: the rest of an address may hold a password.
        scheme = url.partition(":")[0]
        raise ConfigError(
            f"store.url: this version keeps entries in sqlite:///FILE (sqlite:////FILE for an absolute path) or "
            f"memory://, without parameters; got an address that begins with {scheme!r}"
        )
    return SqliteStore(Path(file), limits, clock)
