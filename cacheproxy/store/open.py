"""From a setting to a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError
from cacheproxy.store.memory import MemoryStore
from cacheproxy.store.sqlite import SqliteStore
from cacheproxy.store.sweeper import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cacheproxy import settings
    from cacheproxy.model import Quota
    from cacheproxy.ports import Clock

DEFAULT_FILE = "entries.sqlite3"
_MEANT_REDIS = frozenset({"http", "https", "tcp", "valkey", "valkeys"})
"""What an address of a Redis is often begun with, by mistake."""


def open_store(
    limits: settings.Store, data_dir: Path, clock: Clock, quotas: Callable[[], Mapping[str, Quota]] = plain
) -> SqliteStore | MemoryStore:
    """Return the EntryStore that `limits.url` names, to be entered with `async with`; nothing is opened before that.

    `quotas` tells each category's part of it, and is asked at every sweep, from any thread.

    - empty: `entries.sqlite3` in the data directory
    - `sqlite:///entries.db`: a path relative to the working directory (three slashes, as in SQLAlchemy)
    - `sqlite:////var/lib/cacheproxy/entries.db`: an absolute path (four slashes)
    - `memory://`: nothing outlives the process

    What replicas share is opened elsewhere (`replicated.py`).

    Raises ConfigError for anything else.
    """
    url = limits.url
    if not url:
        return SqliteStore(data_dir / DEFAULT_FILE, limits, clock, quotas=quotas)
    if url == "memory://":
        return MemoryStore(limits, clock, quotas=quotas)
    file = url.removeprefix("sqlite:///")
    if file in {url, ""} or file.endswith("/") or any(mark in file for mark in "?#\0"):
        # Only the scheme is named: the rest of an address may hold a password.
        scheme = url.partition(":")[0]
        hint = ": a Redis is named by redis://, or by rediss:// where it wants TLS" if scheme in _MEANT_REDIS else ""
        raise ConfigError(
            f"store.url: this version keeps entries in sqlite:///FILE (sqlite:////FILE for an absolute path) or "
            f"memory://, without parameters, or shares them in redis://HOST; got an address that begins with "
            f"{scheme!r}{hint}"
        )
    return SqliteStore(Path(file), limits, clock, quotas=quotas)
