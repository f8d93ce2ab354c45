"""Leases under real faults: replicas stopped and resumed, a master that comes back, a Cluster that loses a node."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.polling import eventually
from tests.support.races import race
from tests.support.redis_groups import redis_cluster, sentinel_group
from tests.support.seats import seated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.redis import RedisServer

ROOT = Path(__file__).resolve().parents[2]
LEASE_MS = 800
BUSY_S = 1.5
"""What a busy machine may add."""


class Line(NamedTuple):
    """What a child said: when it looked, whether it might serve, the last purge it had applied, when it had looked."""

    at_s: float
    serving: bool
    applied: int
    said_s: float


class Child:
    """One replica in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[Line] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            if len(words := raw.split()) == 4:  # the log goes the same way
                at_s, serving, applied, said_s = words
                self.lines.append(Line(float(at_s), serving == b"1", int(applied), float(said_s)))

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


@asynccontextmanager
async def child(url: str) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.seat_child", url, str(LEASE_MS)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    one = Child(process)
    try:
        await eventually(lambda: bool(one.lines) and one.lines[-1].serving, "the child serves", within_s=20)
        yield one
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await one._reading


@pytest.mark.parametrize("stopped_s", [0.3, 1.2, 2.5])
async def test_a_replica_that_was_stopped_never_serves_what_was_purged_meanwhile(
    redis: RedisServer, stopped_s: float
) -> None:
    async with seated(redis.url, lease_ms=LEASE_MS) as one, child(redis.url) as other:
        await asyncio.sleep(1.0)  # no lease of before is left
        acked_s: dict[int, float] = {}
        for number in range(1, 7):
            if number % 2:
                other.send(signal.SIGSTOP)
            place = await one.purge(0, str(number))
            told = await one.members.acknowledged({0: place}, 0.1)
            if number % 2:
                assert not told.everybody, "a stopped replica may still hold its lease"
                assert 0 < told.until_s <= LEASE_MS / 1000 * 1.1 + 0.05
            # From then on nobody may serve what was purged: at once, or when the last lease has ended.
            acked_s[number] = time.monotonic() + told.until_s
            if number % 2:
                await asyncio.sleep(stopped_s)
                other.send(signal.SIGCONT)
            await eventually(lambda n=number: other.lines[-1].applied == n, "it applied the purge", within_s=10)  # type: ignore[misc]
            await eventually(lambda: other.lines[-1].serving, "it serves again", within_s=10)
        wrong = [
            (number, line)
            for number, since_s in acked_s.items()
            for line in other.lines
            if line.serving and line.applied < number and line.at_s > since_s
        ]
        assert wrong == []


async def test_a_replica_that_died_is_a_laggard_until_its_lease_has_ended(redis: RedisServer) -> None:
    async with seated(redis.url, lease_ms=LEASE_MS) as one, child(redis.url) as other:
        await asyncio.sleep(1.0)
        other.send(signal.SIGKILL)
        await other.process.wait()
        place = await one.purge(0, "1")
        began_s = time.monotonic()
        told = await one.members.acknowledged({0: place}, 0.3)
        assert len(told.laggards) == 1
        assert (await one.members.acknowledged({0: place}, 5)).everybody
        assert time.monotonic() - began_s < LEASE_MS / 1000 * 1.1 + BUSY_S


async def test_a_failover_ends_every_lease_of_the_old_master_before_the_new_one_grants_any() -> None:
    async with (
        sentinel_group() as group,
        seated(group.url, lease_ms=LEASE_MS) as one,
        seated(group.url, lease_ms=LEASE_MS) as two,
    ):
        old = await group.master()
        before = one.link.identity(one.layout.stream(0))
        old.pause()
        stopped_s = time.monotonic()
        await eventually(lambda: not (one.serves(0) or two.serves(0)), "leases ended")
        assert time.monotonic() - stopped_s < LEASE_MS / 1000 + BUSY_S
        await group.failed_over(old)
        old.resume()  # it believes to be the master until a Sentinel tells it otherwise
        for _ in range(300):
            for seat in (one, two):
                now = seat.link.identity(seat.layout.stream(0))
                assert not (now == before and seat.serves(0)), "the old master grants nothing"
            await asyncio.sleep(0.005)
        await eventually(lambda: one.serves() and two.serves(), "both serve from the new master", within_s=20)
        for seat in (one, two):
            after = {log: seat.link.identity(seat.layout.stream(log)) for log in seat.layout.logs}
            assert before not in after.values()
            assert seat.read_from == after, "what it serves was read again from the new master, every log of it"
        place = await one.purge(0, "1")
        assert (await one.members.acknowledged({0: place}, 5)).everybody


async def test_without_a_majority_of_sentinels_no_lease_is_granted() -> None:
    async with sentinel_group() as group, seated(group.url, lease_ms=LEASE_MS) as one:
        for sentinel in group.sentinels[:2]:
            await sentinel.kill()
        await eventually(lambda: not one.serves(), "its lease ended")
        for sentinel in group.sentinels[:2]:
            await sentinel.start()
        await eventually(one.serves, "it serves again", within_s=30)


@pytest.mark.slow
async def test_a_lost_node_of_a_cluster_stops_its_own_logs_and_they_come_back() -> None:
    async with redis_cluster() as cluster, seated(cluster.url, wait=False, lease_ms=2000) as one:
        await eventually(one.serves, "all logs are served", within_s=20)
        lost = await cluster.owner(one.layout.stream("c"))
        owned = {log for log in one.layout.logs if await cluster.owner(one.layout.stream(log)) is lost}
        assert 0 < len(owned) < len(one.layout.logs)
        await lost.kill()
        others = set(one.layout.logs) - owned
        await eventually(
            lambda: all(map(one.serves, others)) and not any(map(one.serves, owned)), "its logs alone are not served"
        )
        await eventually(one.serves, "a replica took over, and all are served again", within_s=60)


@pytest.mark.slow
async def test_a_master_without_most_of_the_others_grants_nothing_long_before_it_knows() -> None:
    async with (
        redis_cluster("--cluster-node-timeout", "15000") as cluster,
        seated(cluster.url, wait=False, lease_ms=2000) as one,
    ):
        await eventually(one.serves, "all logs are served", within_s=20)
        left = await cluster.owner(one.layout.stream("c"))
        others = {(await cluster.owner(one.layout.stream(log))).port for log in one.layout.logs} - {left.port}
        paused = [node for node in cluster.nodes if node.port in others]
        assert len(paused) == 2
        for node in paused:
            node.pause()
        assert await left.ask("PING")
        await eventually(lambda: not one.serves("c"), "its log is not served either", within_s=8)
        for node in paused:
            node.resume()
        await eventually(one.serves, "all are served again", within_s=30)


def racers() -> list[int]:
    """Return the processes of a race that this one has begun."""
    pids = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in pids if b"replica_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def stopping(seconds: float) -> None:
    """Stop one replica of a race after another, for less than its lease and for more."""
    replicas = racers()
    assert len(replicas) == 3
    until_s, chance = time.monotonic() + seconds, random.Random(8)
    while time.monotonic() < until_s:
        pid = chance.choice(replicas)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(chance.choice((0.2, 0.5, 1.5, 2.6)))
        finally:
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(chance.uniform(0.2, 0.8))


@pytest.mark.slow
async def test_stores_whose_processes_are_stopped_again_and_again_serve_nothing_that_was_purged(
    redis: RedisServer, tmp_path: Path
) -> None:
    came = await race(redis.url, tmp_path, replicas=3, keys=300, seconds=25, quiet_s=4, trouble=lambda: stopping(20))
    sys.stdout.write(f"{came.races} races, {came.soon_after} hits soon after, {came.serves} hits\n")
    assert came.violations == ()
    assert came.divergent == ()
    assert came.races > 200
    assert came.soon_after > 100
