"""Names of keys: one slot a shard, and no way out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.errors import ConfigError
from cacheproxy.shared.address import Address
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.slots import key_of, read_masters, read_slots, slot_of

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


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a"), "a"),
        (("EVALSHA", "0" * 40, 2, "a", "b", "c"), "a"),
        (("EVAL", "return 1", 0), None),
        (("XREAD", "COUNT", 5, "BLOCK", 5, "STREAMS", "a", "0-0"), "a"),
        (("XINFO", "STREAM", "a"), "a"),
        (("PING",), None),
        (("INFO", "server"), None),
    ],
)
def test_a_command_goes_where_its_first_key_is(command: tuple[object, ...], key: str | None) -> None:
    assert key_of(command) == key


ASKED = Address("10.0.0.1", 7000)


def test_the_map_of_slots_names_masters_and_leaves_out_what_is_not_covered() -> None:
    reply = [[0, 1, [b"10.0.0.2", 7001, b"id"], [b"10.0.0.3", 7002, b"id"]], [3, 3, [b"", 7000, b"id"]]]
    other = Address("10.0.0.2", 7001)
    assert read_slots(reply, ASKED) == {0: other, 1: other, 3: ASKED}


def test_masters_that_a_node_sees_nothing_wrong_with_are_read_under_all_their_names() -> None:
    reply = b"""\
a1 :7000@17000 myself,master - 0 0 1 connected 0-5460
a2 10.0.0.2:7001@17001,two.example master - 0 0 2 connected 5461-10922
a3 10.0.0.3:7002@17002 master,fail? - 0 0 3 connected 10923-16383
a4 10.0.0.4:7003@17003 master,fail - 0 0 3 disconnected
a5 10.0.0.5:7004@17004 slave a1 0 0 1 connected
a6 :0@0 master,noaddr - 0 0 3 disconnected
"""
    assert read_masters(reply, ASKED) == {ASKED, Address("10.0.0.2", 7001), Address("two.example", 7001)}
