"""What replicas see of each other: inserts, purges, races of both, divergence, and throughput together."""

from __future__ import annotations

import asyncio
import itertools
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from tests.benchmarks import load
from tests.benchmarks.scenarios import request
from tests.support.chaos import ChaosProxy
from tests.support.histories import divergent, violations
from tests.support.polling import eventually_true
from tests.support.ports import HOST
from tests.support.races import Races, race
from tests.support.redis import redis_server
from tests.support.replica_load import asking
from tests.support.replicas import fleet

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.replicas import Replica

_LOST_S = 10.0
_ROUND_S = 30.0
_RACED_KEYS = 128
_RECONCILE_S = 10
_CONNECTIONS = 16
_EXACT = "x-cacheproxy-tier: exact\r\n"


def fresh() -> str:
    """Return a question that nobody asked."""
    return f"What is {uuid4().hex}?"


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum, in the values' unit."""
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "p50": round(ordered[len(ordered) // 2], 2),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
        "max": round(ordered[-1], 2),
    }


async def visible(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time inserts until both other replicas serve them, and purges until they are acknowledged, under load."""
    seen_ms: list[float] = []
    acknowledged_ms: list[float] = []
    unacknowledged = 0
    async with redis_server() as redis, fleet(directory, [redis.url] * 3) as found:
        known = [fresh() for _ in range(20)]
        await found.spread(*known)
        async with asking(
            found.replicas, lambda number: fresh() if number % 10 == 0 else known[number % 20], pause_s=0.02
        ) as asked:
            for number in range(arguments.changes):
                text = fresh()
                first, *others = (found.replicas[(number + turn) % 3] for turn in range(3))
                await first.ask(text)
                kept_s = time.monotonic()
                for other in others:
                    await eventually_true(partial(_serves, other, text), "an insert is visible", _LOST_S)
                seen_ms.append((time.monotonic() - kept_s) * 1000)
                called_s = time.monotonic()
                told = await others[0].purge(text)
                acknowledged_ms.append((time.monotonic() - called_s) * 1000)
                unacknowledged += told.status != 200
                for replica in found.replicas:
                    await replica.serves(text)
        return {
            "insert_visible_ms": quantiles(seen_ms),
            "purge_acknowledged_ms": quantiles(acknowledged_ms),
            "purges_not_acknowledged_at_once": unacknowledged,
            "broken_promises": len(violations(found.history)),
            "load": dict(asked.outcomes),
        }


async def _serves(replica: Replica, text: str) -> bool:
    return await replica.serves(text) is not None


async def races(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Race fills, serves and purges of three stores in processes of their own until there are enough."""
    rounds: list[Races] = []
    began_s = time.monotonic()
    async with redis_server() as redis:
        while sum(one.races for one in rounds) < arguments.races and time.monotonic() < began_s + arguments.races_s:
            await redis.ask("FLUSHALL")
            room = directory / str(len(rounds))
            room.mkdir()
            rounds.append(await race(redis.url, room, replicas=3, keys=_RACED_KEYS, seconds=_ROUND_S))
    return {
        "races": sum(one.races for one in rounds),
        "acknowledged": sum(one.acknowledged for one in rounds),
        "hits": sum(one.serves for one in rounds),
        "hits_within_50_ms_of_a_purge": sum(one.soon_after for one in rounds),
        "fills": sum(one.fills for one in rounds),
        "broken_promises": sum(len(one.violations) for one in rounds),
        "divergent_keys": sum(len(one.divergent) for one in rounds),
        "acknowledged_ms": quantiles([took for one in rounds for took in one.acknowledged_ms]),
        "seconds": round(time.monotonic() - began_s),
    }


async def divergence(directory: Path, _: argparse.Namespace) -> dict[str, Any]:
    """Cut a replica off while much changes, and compare what all serve after one reconcile."""
    texts = [fresh() for _ in range(100)]
    settings = {"CACHEPROXY_REPLICAS__RECONCILE_S": str(_RECONCILE_S)}
    async with redis_server() as redis, ChaosProxy(redis.port) as way:
        urls = [redis.url, redis.url, f"redis://{HOST}:{way.port}/0"]
        async with fleet(directory, urls, **settings) as found:
            await found.spread(*texts)
            way.partition()
            for start in range(0, 60, 10):
                await found.replicas[0].purge(*texts[start : start + 10])
            await asyncio.gather(*(found.replicas[1].ask(text) for text in texts[:30]))
            await asyncio.sleep(3)
            way.heal()
            await asyncio.sleep(_RECONCILE_S + 2)
            views = await found.views(texts)
            return {
                "entries": len(texts),
                "changed_meanwhile": 60,
                "reconcile_s": _RECONCILE_S,
                "divergent": len(divergent(views)),
                "broken_promises": len(violations(found.history)),
            }


async def throughput(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask kept questions of one, two and three replicas at once, as fast as they answer."""
    found_per_s: dict[str, Any] = {}
    for count in (1, 2, 3):
        room = directory / str(count)
        room.mkdir()
        async with redis_server() as redis, fleet(room, [redis.url] * count) as found:
            texts = [fresh() for _ in range(20)]
            ports = [urlsplit(replica.server.proxy.url).port or 0 for replica in found.replicas]
            for port in ports:
                asked = iter([request(text, headers=_EXACT) for text in texts])
                for _ in texts:
                    await load.run(HOST, port, asked, connections=1, seconds=0)
            await asyncio.sleep(1)
            cpu_s = [replica.server.cpu_s for replica in found.replicas]
            runs = await asyncio.gather(
                *(
                    load.run(
                        HOST,
                        port,
                        itertools.cycle([request(text, headers=_EXACT) for text in texts]),
                        connections=_CONNECTIONS,
                        seconds=arguments.throughput_s,
                    )
                    for port in ports
                )
            )
            answered = sum(len(run.total_ms) for run in runs)
            used_s = sum(replica.server.cpu_s for replica in found.replicas) - sum(cpu_s)
            outcomes: dict[str, int] = {}
            for run in runs:
                for name, number in run.outcomes.items():
                    outcomes[name] = outcomes.get(name, 0) + number
            found_per_s[str(count)] = {
                "requests_per_s": round(answered / max(run.elapsed_s for run in runs)),
                "cpu_ms_a_request": round(used_s * 1000 / answered, 3),
                "ms": quantiles([took for run in runs for took in run.total_ms]),
                "outcomes": outcomes,
            }
    return found_per_s
