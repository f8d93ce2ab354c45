"""What callers notice while the engine is killed, hung or full: who answers, and how much later."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from tests.benchmarks.replicas_seen import fresh
from tests.support.redis import redis_server
from tests.support.replica_load import Load, asking
from tests.support.replicas import fleet

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from tests.support.redis import RedisServer

_FAIR_S = 5.0
_FIRST_S = 1.0
"""As long as failures last until the breaker is open."""


async def away(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask fresh questions, which the backend answers, before and while the engine is away."""
    found_by_way: dict[str, Any] = {}
    for way in ("killed", "hung", "full"):
        room = directory / way
        room.mkdir()
        async with redis_server() as redis, fleet(room, [redis.url] * 2) as found:
            await found.spread(fresh())
            async with asking(found.replicas, lambda _: fresh(), callers=4, pause_s=0.01) as asked:
                await asyncio.sleep(1)
                fair_s = time.monotonic()
                await asyncio.sleep(_FAIR_S)
                away_s = time.monotonic()
                await _begin(redis, way)
                await asyncio.sleep(arguments.away_s)
                until_s = time.monotonic()
                await _end(redis, way)
                back_s = time.monotonic()
                await found.spread(fresh(), within_s=60)
                again_s = time.monotonic() - back_s
            fair = asked.since(fair_s, away_s)
            first = asked.since(away_s, away_s + _FIRST_S)
            later = asked.since(away_s + _FIRST_S, until_s)
            found_by_way[way] = {
                "asked": len(first.asked) + len(later.asked),
                "answered": _answered(first) + _answered(later),
                "failures": dict(first.failures + later.failures),
                "fair": _ms(fair),
                "first_second": _ms(first),
                "later": _ms(later),
                "added_p99_ms_at_first": round(first.quantile_ms(0.99) - fair.quantile_ms(0.99), 1),
                "added_p99_ms_later": round(later.quantile_ms(0.99) - fair.quantile_ms(0.99), 1),
                "serves_again_after_s": round(again_s, 1),
            }
    return found_by_way


async def _begin(redis: RedisServer, way: str) -> None:
    match way:
        case "killed":
            await redis.kill()
        case "hung":
            redis.pause()
        case _:
            await redis.fill()


async def _end(redis: RedisServer, way: str) -> None:
    match way:
        case "killed":
            await redis.start()
        case "hung":
            redis.resume()
        case _:
            await redis.drain()


def _answered(load: Load) -> int:
    return sum(load.outcomes[name] for name in ("hit", "miss", "bypass"))


def _ms(load: Load) -> dict[str, float]:
    return {share: round(load.quantile_ms(value), 2) for share, value in (("p50", 0.5), ("p99", 0.99))}
