"""What a replica knows to be there: it follows the log, whatever comes twice, late or out of order."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.model import Selector
from cacheproxy.store.codec import encode
from cacheproxy.store.meta import MOST_BYTES, MetaError, decode_meta, encode_meta
from cacheproxy.store.redis.directory import Directory
from cacheproxy.store.redis.fences import SharedFences
from cacheproxy.store.redis.messages import (
    Came,
    Evicted,
    Hidden,
    MessageError,
    Purged,
    decode_selector,
    encode_selector,
    read_change,
)
from tests.support.entries import NOW_S, entry_id, make_entry

if TYPE_CHECKING:
    from cacheproxy.store.meta import Meta


def meta(key: str, ver: int, tenant: str = "t") -> Meta:
    encoded = encode(replace(make_entry(key), tenant=tenant))
    return decode_meta(encode_meta(encoded), entry_id(key), ver)


def directory(**limits: int) -> Directory:
    return Directory(2, lambda one: int(one[0], 16) % 2, **limits)


def held(known: Directory) -> dict[str, int]:
    return {one.id: one.ver for one in known}


def test_what_is_known_of_an_entry_comes_back_in_every_part() -> None:
    entry = replace(make_entry("a"), namespace="n", model="m", user="u", second="s")
    encoded = encode(entry)
    known = decode_meta(encode_meta(encoded), entry.id, 7)
    for name in ("id", "partition", "tenant", "namespace", "model", "user", "second", "tags", "parents", "gone_s"):
        assert getattr(known, name) == getattr(entry, name)
    assert (known.ver, known.dim, known.text) == (7, 8, "")


def test_a_meta_travels_as_other_versions_read_it() -> None:
    entry = replace(make_entry("a"), namespace="n", model="m", user="u", second="s")
    told = msgspec.msgpack.decode(encode_meta(encode(entry)))
    at = entry.partition
    assert told[:4] == [entry.id, at.category, at.compatibility, at.epoch]
    assert told[4:9] == [entry.tenant, "n", "m", "u", "s"]
    assert told[9:14] == [list(entry.tags), entry.created_s, entry.expires_s, entry.gone_s, entry.fill_ms]
    assert (len(told), told[15]) == (16, 8)


@pytest.mark.parametrize("sealed", [b"", b"\x80", b"\xc1", b"x" * (MOST_BYTES + 1), None, b"\x80\x04cposix\nsystem\n"])
def test_a_meta_that_no_proxy_wrote_is_refused(sealed: bytes | None) -> None:
    with pytest.raises(MetaError):
        decode_meta(sealed, entry_id("a"), 1)


def test_a_meta_of_another_entry_is_refused() -> None:
    with pytest.raises(MetaError):
        decode_meta(encode_meta(encode(make_entry("a"))), entry_id("b"), 1)


def test_versions_only_go_forward() -> None:
    known = directory()
    assert known.put(meta("a", 5), NOW_S)
    assert not known.put(meta("a", 5), NOW_S)
    assert not known.put(meta("a", 4), NOW_S)
    assert known.put(meta("a", 6), NOW_S)
    assert not known.removed(entry_id("a"), 5)
    assert known.removed(entry_id("a"), 7)
    assert not known.put(meta("a", 6), NOW_S), "it was removed up to version 7"
    assert known.put(meta("a", 8), NOW_S)


@pytest.mark.parametrize("seed", range(200))
def test_messages_shuffled_doubled_and_replayed_end_in_the_same_state(seed: int) -> None:
    """Row 99 of reliability: reorder, duplicate, replay."""
    rng = random.Random(seed)
    changes: list[tuple[str, ...]] = []
    expected: dict[str, int] = {}
    for ver in range(1, rng.randrange(2, 60)):
        key, op = rng.choice("bcdefg"), rng.choice(["put", "put", "put", "purge", "evict", "hide"])
        if op == "put":
            expected[entry_id(key)] = ver
        elif op == "hide":
            expected = {one: at for one, at in expected.items() if one != entry_id(key)}
        elif op == "purge" or expected.get(entry_id(key)):
            expected.pop(entry_id(key), None)
        changes.append((op, key, str(ver)))
    known = directory()
    played = [*changes, *rng.sample(changes, len(changes) // 2)]
    rng.shuffle(played)
    for op, key, at in played:
        if op == "put":
            known.put(meta(key, int(at)), NOW_S)
        elif op == "hide":
            for shard in range(2):
                known.hide(shard, Selector(tag=key), int(at))
        else:
            known.removed(entry_id(key), int(at))
    assert held(known) == expected
    assert len(known) == len(expected)


def test_removals_that_are_not_remembered_one_by_one_keep_what_is_older_out() -> None:
    known = directory(most_removed=2)
    for number, key in enumerate("abcd"):
        known.removed(entry_id(key), number + 10)
    assert not known.put(meta("a", 9), NOW_S)
    assert known.put(meta("a", 100), NOW_S)
    for shard in range(2):
        known.begin_again(shard)
    assert known.put(meta("b", 12), NOW_S), "the engine was read anew: what is there is there"


def test_what_is_hidden_is_gone_and_still_known_as_doomed_until_it_is_removed() -> None:
    known = directory()
    for number, key in enumerate("abc"):
        known.put(meta(key, number + 1, tenant="t1" if key != "c" else "t2"), NOW_S)
    for shard in range(2):
        known.hide(shard, Selector(tenant="t1"), 10)
    assert held(known) == {entry_id("c"): 3}
    assert {one.id for one in known.doomed(Selector(tenant="t1"))} == {entry_id("a"), entry_id("b")}
    assert not known.put(meta("late", 9, tenant="t1"), NOW_S), "it was kept before, and is heard of only now"
    assert known.put(meta("new", 11, tenant="t1"), NOW_S)
    assert known.put(meta("a", 12, tenant="t1"), NOW_S)
    known.removed(entry_id("b"), 13)
    assert [one.id for one in known.doomed()] == [entry_id("late")]


def test_rows_are_versions_so_that_cursors_mean_the_same_on_every_replica() -> None:
    one, other = directory(), directory()
    metas = [meta(key, number * 10 + 10) for number, key in enumerate("abcdef")]
    for each in metas:
        one.put(each, NOW_S)
    for each in random.Random(1).sample(metas, len(metas)):
        other.put(each, NOW_S)
    for after in (0, 10, 35):
        assert [row for row, _ in one.after(after, 3)] == [row for row, _ in other.after(after, 3)]


def test_a_fill_is_as_old_as_the_generation_that_was_heard_of_when_it_began() -> None:
    fences = SharedFences(100)
    fences.begin_again({0: 7, 1: 3})
    began = fences.current
    fences.purged(0, 8, ["x"])
    assert (fences.generation(0, began), fences.generation(0, fences.current)) == (7, 8)
    assert fences.generation(1, fences.current) == 3
    assert not fences.admits("x", began)
    assert fences.admits("y", began)
    fences.erased(1, 4)
    assert not fences.admits("y", began)


def test_fills_that_began_after_the_call_of_a_purge_are_admitted_unless_another_purge_came_between() -> None:
    fences = SharedFences(100)
    fences.begin_again({0: 7})
    fences.put_up(["x"])
    called = fences.current
    fences.done(0, 8, called)
    assert fences.generation(0, called) == 8
    fences.put_up(["x"])
    called = fences.current
    fences.done(0, 10, called)  # somebody else's was the ninth
    assert fences.generation(0, called) == 8
    assert fences.generation(0, fences.current) == 10


def test_fills_older_than_what_is_remembered_count_as_the_oldest() -> None:
    fences = SharedFences(0, most_ids=16)
    fences.begin_again({0: 0})
    began = fences.current
    for number in range(100):
        fences.purged(0, number + 1, [f"x{number}"])
    assert fences.generation(0, began) == 0
    assert fences.generation(0, fences.current) == 100


SELECTORS = [
    Selector(tenant="t"),
    Selector(ids=("a", "b"), before_s=5.0),
    Selector(before_s=0.0),
    Selector(parents=("p",), category="c", namespace="n", model="m", tag="x", user="u"),
]


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_selector_travels(selector: Selector) -> None:
    assert decode_selector(encode_selector(selector)) == selector


BAD = [
    {b"op": b"put"},
    {b"op": b"put", b"id": b"x", b"ver": b"1", b"m": b"\xc1"},
    {b"op": b"purge", b"ids": b"a", b"ver": b"soon", b"gen": b"1"},
    {b"op": b"evict", b"ids": b"a,b", b"vers": b"1"},
    {b"op": b"hide", b"sel": b"\x80", b"ver": b"1", b"gen": b"1"},
    {b"op": b"hide", b"sel": b"\x81\xa4text\xa1x", b"ver": b"1", b"gen": b"1"},
    {b"op": b"used", b"uses": b"pickle"},
    {b"op": b"of a later version"},
    {},
]


@pytest.mark.parametrize("fields", BAD)
def test_a_message_that_is_not_understood_is_told(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(MessageError):
        read_change(fields)


def test_messages_are_read_as_they_were_written() -> None:
    sealed = encode_meta(encode(make_entry("a")))
    came = read_change({b"op": b"put", b"id": entry_id("a").encode(), b"ver": b"9", b"m": sealed, b"by": b"r1"})
    assert isinstance(came, Came)
    assert (came.meta.ver, came.by) == (9, "r1")
    purged = read_change({b"op": b"purge", b"ids": b"a,b", b"ver": b"3", b"gen": b"2", b"by": b"r1"})
    assert purged == Purged(("a", "b"), 3, 2, "r1")
    assert read_change({b"op": b"evict", b"ids": b"a", b"vers": b"3", b"by": b"r1"}) == Evicted(("a",), (3,))
    hidden = read_change({b"op": b"hide", b"sel": encode_selector(SELECTORS[0]), b"ver": b"3", b"gen": b"2"})
    assert hidden == Hidden(SELECTORS[0], 3, 2, "")
