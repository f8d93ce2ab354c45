from __future__ import annotations

from pathlib import Path

import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.settings import Store
from cacheproxy.store.memory import MemoryStore
from cacheproxy.store.open import open_store
from tests.support.clock import FakeClock
from tests.support.entries import entry_id, make_entry


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("", "data/entries.sqlite3"),
        ("sqlite:///relative.db", "relative.db"),
        ("sqlite:///sub/relative.db", "sub/relative.db"),
        ("sqlite:///{tmp}/absolute.db", "absolute.db"),
    ],
    ids=["default", "relative", "relative in a directory", "absolute"],
)
async def test_the_address_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_store(Store(url=url.format(tmp=tmp_path)), tmp_path / "data", FakeClock()) as store:
        assert await store.put(make_entry("a"), store.fence)
        assert _exists(tmp_path / file)


def _exists(file: Path) -> bool:
    return file.is_file()


async def test_memory_forgets_at_its_end() -> None:
    store = open_store(Store(url="memory://"), Path("unused"), FakeClock())
    assert isinstance(store, MemoryStore)
    async with store:
        await store.put(make_entry("a"), store.fence)
    assert await store.get(entry_id("a")) is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@localhost/0",
        "sqlite://",
        "sqlite:///",
        "sqlite:///directory/",
        "sqlite:///e.db?mode=ro",
        "sqlite:e.db",
        "memory://shared",
        "e.db",
        "postgresql://u:hunter2@h/d",
        "http://user:hunter2@localhost:6379",
    ],
)
def test_any_other_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///FILE") as caught:
        open_store(Store(url=url), Path("unused"), FakeClock())
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https", "valkey"])
def test_who_means_a_redis_is_told_how_one_is_named(scheme: str) -> None:
    with pytest.raises(ConfigError, match=r"named by redis://, or by rediss://"):
        open_store(Store(url=f"{scheme}://localhost:6379"), Path("unused"), FakeClock())
