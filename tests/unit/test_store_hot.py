from __future__ import annotations

from cacheproxy.store.hot import HotEntries
from tests.support.entries import entry_id, make_entry


def _held(hot: HotEntries, keys: str) -> str:
    return "".join(key for key in keys if hot.get(entry_id(key)) is not None)


def test_the_least_recently_used_entries_leave_when_bytes_run_out() -> None:
    hot = HotEntries(300)
    for key in "abc":
        hot.put(make_entry(key), 100)
    assert hot.get(entry_id("a")) is not None
    hot.put(make_entry("d"), 150)
    assert _held(hot, "abcd") == "ad"
    assert hot.size_bytes == 250


def test_replacing_and_discarding_give_bytes_back() -> None:
    hot = HotEntries(300)
    hot.put(make_entry("a"), 100)
    hot.put(make_entry("a", version=1), 200)
    assert hot.size_bytes == 200
    hot.discard(entry_id("a"))
    hot.discard(entry_id("a"))
    assert (hot.size_bytes, len(hot)) == (0, 0)


def test_an_entry_larger_than_the_capacity_displaces_nothing() -> None:
    hot = HotEntries(300)
    hot.put(make_entry("a"), 100)
    hot.put(make_entry("big"), 301)
    assert _held(hot, "a") == "a"
    assert hot.get(entry_id("big")) is None
    hot.put(make_entry("a", version=1), 301)
    assert hot.get(entry_id("a")) is None  # not the version before either
