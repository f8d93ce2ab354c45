"""Replicas of two versions on one engine (row 101): each reads what the other wrote, or leaves it alone.

No older version is run here. Simulated are what one wrote, by bytes that were recorded (`recorded/schema-1.json`, never
to be made anew for the same schema), and what a later one will write, by fields, kinds and versions that this one does
not know.
"""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cacheproxy.learn.sharedlabels import SharedLabel
from cacheproxy.model import Selector
from cacheproxy.shared.erasures import read_asked
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.lease import SCHEMA
from cacheproxy.store.codec import VERSION, decode, encode
from cacheproxy.store.meta import decode_meta, encode_meta
from cacheproxy.store.redis.messages import Came, Evicted, Hidden, Purged, Used, read_change
from tests.support.entries import entry_id, make_entry, same
from tests.support.polling import eventually_true
from tests.support.shared_store import joined_store

if TYPE_CHECKING:
    from tests.support.redis import RedisServer
    from tests.support.shared_store import Joined

KEYS = Layout("cacheproxy", 1)
KEY = "recorded"
ID = entry_id(KEY)


def recorded() -> dict[str, bytes]:
    told = msgspec.json.decode((Path(__file__).parent / "recorded" / "schema-1.json").read_bytes(), type=dict[str, str])
    return {name: text.encode() if name == "line" else base64.b64decode(text) for name, text in told.items()}


def longer(sealed: bytes) -> bytes:
    """Return an array as a later version writes it, with more at its end."""
    return msgspec.msgpack.encode([*msgspec.msgpack.decode(sealed), "later", 1])


async def holds(joined: Joined, entry: str) -> bool:
    return await joined.store.get(entry) is not None


def test_what_the_version_before_wrote_is_read_as_it_was_meant() -> None:
    assert SCHEMA == 1, "record what this schema writes, beside schema-1.json, and read both"
    old = recorded()
    assert same(decode(old["record"], old["vector"], ID).entry, make_entry(KEY))
    meta = decode_meta(old["meta"], ID, 7)
    assert (meta.id, meta.ver, meta.partition) == (ID, 7, make_entry(KEY).partition)
    ids = f"{ID},{'0' * 32}".encode()
    messages: list[tuple[dict[bytes, bytes], type]] = [
        ({b"op": b"put", b"id": ID.encode(), b"ver": b"7", b"m": old["meta"], b"by": b"one"}, Came),
        ({b"op": b"purge", b"ids": ids, b"ver": b"7", b"gen": b"1", b"by": b"one"}, Purged),
        ({b"op": b"evict", b"ids": ids, b"vers": b"7,8", b"by": b"one"}, Evicted),
        ({b"op": b"hide", b"sel": old["selector"], b"ver": b"7", b"gen": b"1", b"by": b"one"}, Hidden),
        ({b"op": b"used", b"uses": old["uses"], b"by": b"one"}, Used),
    ]
    for fields, kind in messages:
        assert isinstance(read_change(fields), kind)
        assert isinstance(read_change({**fields, b"later": b"x"}), kind)
    hidden = read_change(messages[3][0])
    assert isinstance(hidden, Hidden)
    assert hidden.selector == Selector(tenant="t1", before_s=5.0)
    asked = read_asked(old["asked"])
    assert asked is not None
    assert (asked.token, asked.meant) == ("t.0", {"tenant": "t1"})
    assert msgspec.msgpack.decode(old["label"], type=SharedLabel).delta == 0.02


def test_what_a_later_version_adds_at_the_end_changes_nothing_for_this_one() -> None:
    old = recorded()
    assert decode_meta(longer(old["meta"]), ID, 7).id == ID
    asked = read_asked(longer(old["asked"]))
    assert asked is not None
    assert asked == read_asked(old["asked"])
    label = msgspec.msgpack.decode(longer(old["label"]), type=SharedLabel)
    assert label == msgspec.msgpack.decode(old["label"], type=SharedLabel)


async def test_an_engine_that_the_version_before_filled_is_served_from(redis: RedisServer, tmp_path: Path) -> None:
    old, now_s = recorded(), time.time()
    meta = encode_meta(encode(replace(make_entry(KEY), created_s=now_s)))  # the recorded one has ended long ago
    record = encode(replace(make_entry(KEY), created_s=now_s)).record
    assert record[:5] == old["record"][:5]
    document = KEYS.key(0, "doc", ID)
    await redis.ask("HSET", document, "r", record, "m", meta, "ver", "7", "v", old["vector"])
    await redis.ask("HSET", KEYS.key(0, "dir"), ID, f"7|{int((now_s + 3600) * 1000)}")
    await redis.ask("HSET", KEYS.key(0, "live"), "one", old["line"])
    await redis.ask("HSET", KEYS.key(0, "live"), "later", old["line"] + b"|more|still")
    async with joined_store(redis.url, tmp_path / "a") as joined:
        assert await holds(joined, ID)
        assert {member.replica for member in await joined.members.listed()} == {"one", "later", joined.members.replica}


async def test_a_record_of_a_later_version_is_a_miss_here_and_stays_for_those_who_read_it(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with joined_store(redis.url, tmp_path / "a", hot_bytes=0) as joined:
        entry = replace(make_entry(KEY), created_s=time.time())
        assert await joined.store.put(entry, joined.store.fence)
        document = KEYS.key(0, "doc", ID)
        record = await redis.ask("HGET", document, "r")
        await redis.ask("HSET", document, "r", record[:4] + bytes([VERSION + 1]) + record[5:])
        assert not await holds(joined, ID)
        assert joined.store.foreign == 1
        assert joined.store.corrupt_records == 0
        assert not await holds(joined, ID)
        assert await redis.ask("EXISTS", document) == 1
        await redis.ask("HSET", document, "r", record)

        async def back() -> bool:
            return await holds(joined, ID)

        await eventually_true(back, "it is served once it can be read")
