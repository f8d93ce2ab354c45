"""Leases, acknowledgements and gaps, against a real engine."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from cacheproxy.clock import SystemClock
from cacheproxy.errors import ConfigError, StoreUnavailable
from cacheproxy.shared.elect import Election
from cacheproxy.shared.follower import Follower, head
from cacheproxy.shared.members import BEFORE
from tests.support.polling import LONG_S, eventually
from tests.support.ports import free_port
from tests.support.redis import RedisServer, redis_server
from tests.support.seats import Seat, seated

if TYPE_CHECKING:
    from cacheproxy.ports import Acknowledgement


async def settled(seat: Seat) -> None:
    """Wait until no lease can be left of before the engine's start."""
    place = await seat.purge(0, "nothing")

    async def done() -> bool:
        return (await seat.members.acknowledged({0: place}, 0.2)).everybody

    for _ in range(40):
        if await done():
            return
    raise AssertionError("never settled")


async def acked(seat: Seat, ids: str, timeout_s: float = 1.0) -> Acknowledgement:
    return await seat.members.acknowledged({0: await seat.purge(0, ids)}, timeout_s)


async def acked_at(seat: Seat, position: str, timeout_s: float) -> Acknowledgement:
    return await seat.members.acknowledged({0: position}, timeout_s)


async def test_a_change_is_acknowledged_once_every_replica_has_applied_it(redis: RedisServer) -> None:
    async with seated(redis.url) as one, seated(redis.url) as two, seated(redis.url) as three:
        await settled(one)
        told = await acked(one, "a")
        assert told.everybody
        for seat in (one, two, three):
            assert [message.fields[b"ids"] for message in seat.applied[0]][-1] == b"a"


async def test_a_slow_replica_is_named_until_it_has_applied(redis: RedisServer) -> None:
    async with seated(redis.url) as one, seated(redis.url) as two:
        await settled(one)
        two.gate.clear()
        told = await acked(one, "a", timeout_s=0.4)
        assert told.laggards == (two.members.replica,)
        assert 0 < told.until_s <= 0.93
        two.gate.set()
        await eventually(lambda: len(two.applied[0]) == len(one.applied[0]), "it has applied it")
        assert (await acked(one, "b")).everybody


async def test_a_lease_is_not_extended_while_something_is_not_applied(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=400) as one, seated(redis.url, lease_ms=400) as two:
        await settled(one)
        two.gate.clear()
        await one.purge(0, "a")
        await eventually(lambda: two.serves("c") and not two.serves(0), "its lease ended, not that of the other log")
        two.gate.set()
        await eventually(lambda: two.serves(0), "it caught up")


async def test_gaps_that_open_while_all_is_read_again_are_met_with_pauses(redis: RedisServer) -> None:
    seat = Seat(redis.url)
    begun_s: list[float] = []

    async def resync(reason: str) -> str:
        begun_s.append(time.monotonic())
        if len(begun_s) < 6:
            await seat.link.slow("DEL", seat.layout.key(0, "epoch"), timeout_s=1.0)
            await seat.members.applied(0, "0-0", tell=True)  # asks, and hears of another engine
        return await head(seat.link, seat.layout, 0, 1.0)

    async def handle(messages: object) -> None:
        pass

    async with seat.link, seat.members:
        follower = Follower(seat.link, seat.layout, 0, seat.members, handle, resync)
        task = asyncio.create_task(follower.run())
        await eventually(lambda: seat.serves(0), "it serves", within_s=10)
        task.cancel()
    assert begun_s[5] - begun_s[0] > 0.5  # 0.78 to 1.55


async def test_a_replica_that_left_is_not_waited_for(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=2400) as one:
        async with seated(redis.url, lease_ms=2400):
            await settled(one)
        assert (await acked(one, "a", timeout_s=2.0)).everybody, "long before the lease of the other one would end"
        assert [member.replica for member in await one.members.listed()] == [one.members.replica]


async def test_replicas_are_listed_with_state_and_place(redis: RedisServer) -> None:
    async with seated(redis.url) as one, seated(redis.url) as two:
        await settled(one)
        listed = {member.replica: member for member in await one.members.listed()}
        assert set(listed) == {one.members.replica, two.members.replica}
        assert {member.state for member in listed.values()} == {"serving"}
        assert all(set(member.applied) == {"0", "c"} for member in listed.values())
        assert all(member.heard_s < 2 for member in listed.values())


async def test_an_engine_that_may_evict_from_now_on_is_used_no_more_until_it_may_not(redis: RedisServer) -> None:
    async with seated(redis.url) as one, seated(redis.url, allow_eviction=True) as other:
        assert one.members.refused == ""
        await redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await eventually(lambda: not any(map(one.serves, one.layout.logs)), "it serves nothing")
        assert "maxmemory-policy allkeys-lru); set noeviction" in one.members.refused
        assert (other.serves(), other.members.refused) == (True, "")
        await redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await eventually(one.serves, "it has read everything again", within_s=10)
        assert one.members.refused == ""


async def test_a_full_engine_takes_heartbeats_purges_and_acknowledgements(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=600) as one, seated(redis.url, lease_ms=600) as two:
        await settled(one)
        await redis.ask("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(1.2)
        await eventually(lambda: one.serves() and two.serves(), "their leases go on")
        assert (await acked(one, "a")).everybody
        async with Election(one.link, one.layout, "one", SystemClock(), term_s=1.0) as election:
            await eventually(lambda: election.leads, "it is elected")


@pytest.mark.quiet
async def test_without_the_engine_nothing_is_served_after_the_lease(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=600) as one:
        redis.pause()
        began_s = time.monotonic()
        await eventually(lambda: not one.serves(0), "its lease ended", within_s=2)
        assert time.monotonic() - began_s <= 0.7
        await asyncio.sleep(1.0)
        redis.resume()
        await eventually(one.serves, "it serves again")
        assert (0, "cut_off") in one.resyncs


async def test_flushing_the_engine_is_a_gap_and_changes_the_epoch(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=1500) as one, seated(redis.url, lease_ms=1500) as two:
        before = one.members.epoch(0)
        await redis.ask("FLUSHALL")
        told = await acked(one, "a", timeout_s=0.05)
        assert not told.everybody, "leases may be held that the flushed engine granted"
        # The purge may be read before a heartbeat tells of the new epoch: then the log is found cut, first.
        noticed = {(0, "epoch"), (0, "trimmed")}
        await eventually(lambda: all(noticed & set(seat.resyncs) for seat in (one, two)), "both noticed")
        await eventually(lambda: one.members.epoch(0) == two.members.epoch(0) != before, "both know the new epoch")
        await eventually(lambda: one.serves() and two.serves(), "both serve again")
        assert one.members.epoch(0) == two.members.epoch(0) != before


async def test_a_restarted_engine_is_noticed_before_anything_is_served_from_it(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=2000) as one:
        before = one.link.identity(one.layout.stream(0))
        await redis.kill()
        await redis.start()
        served_early = False
        # A read may find the log cut before a heartbeat tells of the new epoch.
        while not {(0, "epoch"), (0, "trimmed")} & set(one.resyncs):
            # It may be served only while no connection has reached the new process.
            served_early |= one.members.serving(0) and one.link.identity(one.layout.stream(0)) != before
            await asyncio.sleep(0.002)
        assert not served_early
        await eventually(one.serves, "it serves again")
        told = await acked(one, "a", timeout_s=0.05)
        assert told.laggards == (BEFORE,)
        assert 0 < told.until_s <= 2.25
        await settled(one)


async def test_a_purge_waits_for_the_longest_lease_of_all_replicas(redis: RedisServer) -> None:
    """Also where each is set otherwise, as while the setting is changed from one replica to the next."""
    async with seated(redis.url, lease_ms=400) as one, seated(redis.url, lease_ms=6000):
        await eventually(lambda: one.members._longest_s(0) > 6.6, "a heartbeat told the first of the second")
        redis.pause()
        told = await acked_at(one, "1-1", timeout_s=0.05)
        redis.resume()
        assert told.laggards == ("unknown",)
        assert told.until_s >= 6.6
        await redis.kill()
        await redis.start()
        await eventually(lambda: one.serves(), "it serves again")
        told = await acked(one, "a", timeout_s=0.05)
        assert not told.everybody
        assert 1.0 < told.until_s < 6.7, "far above its own lease"
        before = one.members.epoch(0)
        await redis.ask("FLUSHALL")  # the next change must not shorten the wait for the one before
        await eventually(lambda: one.members.epoch(0) != before, "it noticed")
        await eventually(one.serves, "it serves again")
        assert (await acked(one, "b", timeout_s=0.05)).until_s > 1.0


async def test_a_trimmed_log_is_a_gap_for_who_was_behind(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=400) as one:
        await redis.ask("CLIENT", "KILL", "TYPE", "normal")
        one.gate.clear()
        await one.purge(0, "a")
        await asyncio.wait_for(one.held_up.wait(), LONG_S)  # now it applies, and does not read
        for number in range(5):
            await one.purge(0, f"lost{number}")
        await redis.ask("XTRIM", one.layout.stream(0), "MAXLEN", 1)
        await one.purge(0, "last")
        one.gate.set()
        await eventually(lambda: (0, "trimmed") in one.resyncs, "it noticed")
        await eventually(one.serves, "it serves again")


async def test_a_log_that_is_gone_or_rolled_back_is_a_gap(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=400) as one:
        stream = one.layout.stream(0)
        await one.purge(0, "a")
        async with redis.client() as client, client.pipeline(transaction=True) as whole:
            whole.execute_command("DEL", stream)
            whole.execute_command("XADD", stream, "5-1", "op", "purge", "ids", "of before")
            await whole.execute()  # a heartbeat between the two would open the log anew
        await eventually(lambda: (0, "rolled_back") in one.resyncs, "it noticed")
        await eventually(one.serves, "it serves again")


async def test_a_message_that_cannot_be_applied_is_read_again_from_everything(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=400) as one:
        for failure in (ValueError("a bug"), StoreUnavailable("a full disk")):
            one.resyncs.clear()
            one.failures.append(failure)
            await one.purge(0, "a")
            await eventually(lambda: (0, "failed") in one.resyncs, "everything is read again")
            await eventually(one.serves, "it serves again")


async def test_data_of_a_later_version_is_left_alone(redis: RedisServer) -> None:
    await redis.ask("SET", "{cacheproxy:0}:epoch", "2:" + "0" * 32)
    with pytest.raises(ConfigError, match=r"store\.prefix.*schema 2"):
        async with seated(redis.url, wait=False):
            pass
    await redis.ask("SET", "{cacheproxy:0}:epoch", "somebody's")
    with pytest.raises(ConfigError, match="another program"):
        async with seated(redis.url, wait=False):
            pass


async def test_a_replica_starts_without_the_engine_and_joins_when_it_comes() -> None:
    port = free_port()
    async with seated(f"redis://127.0.0.1:{port}", wait=False, lease_ms=400) as one:
        await asyncio.sleep(0.3)
        assert not one.serves()
        async with redis_server(port=port):
            await eventually(one.serves, "it joins")


async def test_one_replica_leads_and_another_takes_over_when_it_is_gone(redis: RedisServer) -> None:
    async with seated(redis.url) as one, seated(redis.url) as two:
        clock = SystemClock()
        async with Election(two.link, two.layout, "two", clock, term_s=5.0) as second:
            async with Election(one.link, one.layout, "one", clock, term_s=1.0) as first:
                await eventually(lambda: first.leads or second.leads, "one leads")
                for _ in range(50):
                    assert not (first.leads and second.leads)
                    await asyncio.sleep(0.01)
            await eventually(lambda: second.leads, "the other leads")
        third = Election(one.link, one.layout, "three", clock, term_s=1.0)
        async with third:
            await eventually(lambda: third.leads, "who leaves resigns", within_s=3.0)


async def test_nothing_is_left_running_or_asked_while_idle(redis: RedisServer) -> None:
    before = asyncio.all_tasks()
    async with seated(redis.url, lease_ms=2000):
        begun = int((await redis.ask("INFO", "stats"))["total_commands_processed"])
        await asyncio.sleep(2.0)
        asked = int((await redis.ask("INFO", "stats"))["total_commands_processed"]) - begun
        # Two logs: four heartbeats of about eight commands within, and four reads, per lease and log.
        assert asked < 200
    assert asyncio.all_tasks() == before
