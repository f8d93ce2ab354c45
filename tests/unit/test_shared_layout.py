"""Names of keys: one slot a shard, and no way out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.errors import ConfigError
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.slots import slot_of

LAYOUT = Layout("cacheproxy", 16)


def test_keys_read_as_their_parts() -> None:
    assert LAYOUT.key(3, "doc", "ab12") == "{cacheproxy:3}:doc:ab12"
    assert LAYOUT.key("c", "policy") == "{cacheproxy:c}:policy"
    assert LAYOUT.stream(3) == "{cacheproxy:3}:log"
    assert LAYOUT.logs == (*range(16), "c")


@given(st.lists(st.text(max_size=150), max_size=3), st.lists(st.text(max_size=150), max_size=3))
def test_a_key_is_of_its_parts_alone_whatever_they_hold(one: list[str], other: list[str]) -> None:
    key = LAYOUT.key(5, *one)
    assert key.isascii()
    assert slot_of(key) == slot_of(LAYOUT.key(5))
    assert (key == LAYOUT.key(5, *other)) == (one == other)


def test_shards_stay_where_they_are_from_version_to_version() -> None:
    assert [LAYOUT.shard_of(f"{number:032x}") for number in range(6)] == [0, 6, 12, 10, 9, 15]
    assert Layout("cacheproxy", 1).shard_of("anything") == 0


def test_documents_spread_over_the_shards() -> None:
    counts = [0] * 16
    for number in range(16_000):
        counts[LAYOUT.shard_of(f"{number * 2654435761:032x}")] += 1
    assert min(counts) > 500


@pytest.mark.parametrize("prefix", ["", "a b", "{a}", "a:b", "A", "-a", "x" * 65])
def test_a_prefix_that_could_be_mistaken_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.prefix"):
        Layout(prefix, 1)
