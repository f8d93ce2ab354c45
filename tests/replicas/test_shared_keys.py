"""Virtual keys of replicas: one document, and budgets that all replicas count together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.access.keyfile import change_keys, read_keys
from cacheproxy.access.keyring import KeyRecord
from cacheproxy.access.limits import Accounts
from cacheproxy.access.sharedkeys import KeyCopy, SharedKeys
from cacheproxy.access.usage import SharedUsage, spent_today
from cacheproxy.errors import ConfigError, RateLimited
from tests.support.clock import FakeClock
from tests.support.fleet import linked

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.shared.layout import Layout
    from cacheproxy.shared.link import Link
    from tests.support.redis import RedisServer

SECRET = b"s" * 32


def record(key_id: str, **limits: int) -> KeyRecord:
    made = KeyRecord(id=key_id, name=key_id, hash=key_id.encode().hex().ljust(64, "0"), tenant="t")
    return msgspec.structs.replace(made, **limits)


def shared(link: Link, layout: Layout) -> SharedKeys:
    return SharedKeys(link, layout, SECRET, log_messages=1000)


async def test_keys_changed_at_once_are_all_there(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        keys = shared(link, layout)
        await asyncio.gather(
            *(keys.change(lambda known, n=n: [*known, record(f"k{n}")]) for n in range(6))  # type: ignore[misc]  # n: int
        )
        assert sorted(one.id for one in await keys.records()) == [f"k{n}" for n in range(6)]


async def test_a_replicas_copy_follows_and_stays_while_the_engine_is_away(redis: RedisServer, tmp_path: Path) -> None:
    path, changes = tmp_path / "keys.json", list[int]()
    async with linked(redis) as (link, layout):
        keys = shared(link, layout)
        copy = KeyCopy(keys, path, lambda: changes.append(1))
        await copy.hear()
        assert not path.exists()
        await keys.change(lambda _: [record("k1")])
        await copy.hear()
        await copy.hear()
        assert [one.id for one in read_keys(path, SECRET)] == ["k1"]
        assert len(changes) == 1
        await redis.kill()
        await copy.tend()
        assert [one.id for one in read_keys(path, SECRET)] == ["k1"]


async def test_the_first_replicas_keys_become_those_of_all_and_come_back_after_a_loss(
    redis: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    change_keys(path, SECRET, lambda _: [record("k1")])
    async with linked(redis) as (link, layout):
        keys = shared(link, layout)
        copy = KeyCopy(keys, path)
        for _ in range(2):
            await copy.hear()
            assert [one.id for one in await keys.records()] == ["k1"]
            await redis.ask("FLUSHALL")


async def test_a_key_that_was_revoked_stays_so_after_a_failover_to_an_older_engine(
    redis: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    async with linked(redis) as (link, layout):
        keys = shared(link, layout)
        await keys.change(lambda _: [record("k1"), record("k2")])
        name = layout.key("c", "keys")
        older = await redis.ask("DUMP", name)
        copy = KeyCopy(keys, path)
        await copy.hear()
        await keys.change(lambda _: [record("k1")])
        await copy.hear()
        for heir in (copy, KeyCopy(keys, path)):  # also one that was started anew
            await redis.ask("RESTORE", name, 0, older, "REPLACE")
            await heir.hear()
            await heir.hear()
            assert [one.id for one in read_keys(path, SECRET)] == ["k1"]
            assert [one.id for one in await keys.records()] == ["k1"]


async def test_of_the_copies_that_an_emptied_engine_is_given_the_highest_number_wins(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with linked(redis) as (link, layout):
        keys = shared(link, layout)
        late, newest = (KeyCopy(keys, tmp_path / name) for name in ("late.json", "newest.json"))
        await keys.change(lambda _: [record("k1"), record("k2")])
        await late.hear()
        await keys.change(lambda _: [record("k1")])
        await newest.hear()
        await redis.ask("FLUSHALL")
        for copy in (late, newest, late):
            await copy.hear()
        assert [one.id for one in await keys.records()] == ["k1"]
        assert [one.id for one in read_keys(tmp_path / "late.json", SECRET)] == ["k1"]
        await keys.change(lambda known: [*known, record("k3")])
        await late.hear()
        assert [one.id for one in read_keys(tmp_path / "late.json", SECRET)] == ["k1", "k3"]


async def test_keys_of_another_install_are_refused(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        await shared(link, layout).change(lambda _: [record("k1")])
        other = SharedKeys(link, layout, b"o" * 32, log_messages=10)
        with pytest.raises(ConfigError, match="another install"):
            await other.records()


class Counting:
    """One replica's accounts of one key."""

    def __init__(self, link: Link, layout: Layout, clock: FakeClock, **limits: int) -> None:
        self.clock = clock
        self.accounts = Accounts()
        self.accounts.adopt([record("k", **limits)], clock.monotonic())
        self.usage = SharedUsage(link, layout, lambda: self.accounts, clock)
        self.account = self.accounts.of("k")

    def spend(self, tokens: int) -> None:
        self.account.charge_tokens(tokens, self.clock.monotonic(), self.clock.now())

    def admits(self) -> bool:
        try:
            self.account.count_request(self.clock.monotonic())
            self.account.check_tokens(self.clock.monotonic(), self.clock.now())
        except RateLimited:
            return False
        return True


async def rounds(*replicas: Counting) -> None:
    for _ in range(2):
        for one in replicas:
            await one.usage.tend()


async def test_tokens_of_a_day_are_spent_together(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        clock = FakeClock()
        one, other = (Counting(link, layout, clock, tokens_per_day=100) for _ in range(2))
        one.spend(60)
        other.spend(39)
        await rounds(one, other)
        assert one.account.spent == other.account.spent == 99
        assert one.admits()
        assert other.admits()
        other.spend(1)
        await rounds(one, other)
        assert not one.admits()
        assert not other.admits()
        assert await spent_today(link, layout, clock.now()) == {"k": 100}
        clock.advance(86_400)
        assert one.admits()


async def test_requests_a_minute_are_used_up_together(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        clock = FakeClock()
        one, other = (Counting(link, layout, clock, requests_per_minute=10) for _ in range(2))
        assert one.admits()
        assert other.admits()
        await rounds(one, other)
        clock.advance(60)
        admitted = [one.admits() for _ in range(12)]
        assert admitted.count(True) == 10
        await rounds(one, other)
        assert not other.admits()
        clock.advance(6)  # a tenth of a minute: one more, at whichever replica
        assert other.admits()
        await rounds(one, other)
        assert not one.admits()


async def test_what_is_used_is_passed_by_no_more_than_a_round_at_each_replica(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        clock = FakeClock()
        replicas = [Counting(link, layout, clock, tokens_per_day=100) for _ in range(3)]
        for one in replicas:
            if one.admits():
                one.spend(99)
        await rounds(*replicas)
        assert [one.admits() for one in replicas] == [False] * 3
        assert replicas[0].account.spent == 3 * 99


async def test_without_the_engine_each_counts_by_itself_and_says_it_later(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        clock = FakeClock()
        one, other = (Counting(link, layout, clock, tokens_per_day=100) for _ in range(2))
        one.spend(10)
        await rounds(one, other)
        redis.pause()
        one.spend(50)
        await one.usage.tend()
        assert one.account.spent == 60
        redis.resume()
        await eventually(one, other, 60)
        other.spend(0)


async def eventually(one: Counting, other: Counting, spent: int) -> None:
    other.spend(5)
    for _ in range(50):
        await rounds(one, other)
        if other.account.spent == one.account.spent >= spent + 5:
            break
        await asyncio.sleep(0.1)
    assert other.account.spent >= spent + 5


async def test_counters_lost_with_the_engine_come_back_and_are_counted_once(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        clock = FakeClock()
        one, other = (Counting(link, layout, clock, tokens_per_day=1000, tokens_per_minute=1000) for _ in range(2))
        one.spend(60)
        other.spend(40)
        await rounds(one, other)
        await redis.ask("FLUSHALL")
        one.spend(1)
        await rounds(one, other)
        assert one.account.spent == other.account.spent == 101
