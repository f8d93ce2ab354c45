"""The purge journal: what was asked to go is known after a restart, for a day."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import ConfigError, StoreUnavailable
from cacheproxy.store.redis.journal import KEEP_S, PurgeJournal

if TYPE_CHECKING:
    from pathlib import Path


async def test_what_was_noted_is_known_after_a_restart_until_a_day_has_passed(tmp_path: Path) -> None:
    path = tmp_path / "purges.sqlite3"
    async with PurgeJournal(path) as journal:
        await journal.note(["a", "b"], 10, 1000.0)
        await journal.note(["b"], 7, 1001.0)
        await journal.note(["c"], 12, 1002.0)
    async with PurgeJournal(path) as journal:
        assert await journal.noted(1002.0) == {"a": 10, "b": 10, "c": 12}
        assert await journal.noted(1001.5 + KEEP_S) == {"c": 12}
        await journal.note(["c"], 11, 1002.0, done=True)
        assert await journal.noted(1001.5 + KEEP_S) == {"c": 11}, "the engine's clock counts, where it is known"
        await journal.note([], 0, 1001.5 + KEEP_S)
        assert await journal.noted(0.0) == {"c": 11}, "what is older is not kept"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = PurgeJournal(tmp_path / "purges.sqlite3")
    async with journal:
        pass
    with pytest.raises(StoreUnavailable):
        await journal.note(["a"], 1, 1.0)


async def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "purges.sqlite3").write_bytes(b"not a database, but long enough to be taken for a file of one" * 20)
    with pytest.raises(ConfigError):
        async with PurgeJournal(tmp_path / "purges.sqlite3"):
            pass
