"""What the shared engine costs: a call, an idle replica, a change's way to three replicas, its acknowledgement.

    python -m tests.benchmarks.shared_engine [--changes 2000]

Server, replicas and this program are on one machine, the three replicas in one process: with cores to spare, less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis

from tests.support.ports import HOST
from tests.support.redis import redis_server
from tests.support.seats import seated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.support.redis import RedisServer
    from tests.support.seats import Seat

CALLS = 5000
IDLE_S = 10.0
WAIT_S = 5.0


def quantiles(times_s: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and the largest, in ms."""
    ordered = sorted(times_s)
    return {
        "p50_ms": round(ordered[len(ordered) // 2] * 1000, 3),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 3),
        "max_ms": round(ordered[-1] * 1000, 3),
    }


async def timed(count: int, work: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """Do something again and again; return how long it took each time."""
    times_s = []
    for _ in range(count):
        began_s = time.perf_counter()
        await work()
        times_s.append(time.perf_counter() - began_s)
    return quantiles(times_s)


async def calls(seat: Seat, server: RedisServer) -> dict[str, Any]:
    """Measure one command at a time, and 50 callers at once, against redis-py's own client."""
    link = seat.link
    await link.call("SET", "{a}", b"x" * 2048)

    async def together(work: Callable[[], Awaitable[Any]]) -> float:
        async def caller() -> None:
            for _ in range(CALLS // 50):
                await work()

        began_s = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(50)))
        return round(CALLS // 50 * 50 / (time.perf_counter() - began_s))

    async with Redis(host=HOST, port=server.port, protocol=2, max_connections=64) as plain:
        return {
            "link": await timed(CALLS, lambda: link.call("GET", "{a}")),
            "redis_py": await timed(CALLS, lambda: plain.get("{a}")),
            "link_per_s_of_50": await together(lambda: link.call("GET", "{a}")),
            "redis_py_per_s_of_50": await together(lambda: plain.get("{a}")),
        }


async def used_cpu_s(server: RedisServer) -> float:
    """Return the processor time that the server has used."""
    told = await server.ask("INFO", "cpu")
    return float(told["used_cpu_sys"]) + float(told["used_cpu_user"])


async def changes(seats: Sequence[Seat], count: int) -> dict[str, Any]:
    """Measure a change's way to each replica, and until all of them have said so."""
    one = seats[0]
    hops_s: list[float] = []
    acks_s: list[float] = []
    for number in range(count):
        before = [len(seat.applied[0]) for seat in seats]
        began_s = time.perf_counter()
        place = await one.purge(0, str(number))
        told = await one.members.acknowledged({0: place}, WAIT_S)
        acks_s.append(time.perf_counter() - began_s)
        if not told.everybody:
            raise SystemExit(f"not acknowledged by {told.laggards}")
        hops_s += [seat.applied_at_s[0][at] - began_s for seat, at in zip(seats, before, strict=True)]
    return {"hop": quantiles(hops_s), "acknowledged": quantiles(acks_s)}


async def main(count: int) -> None:
    """Measure all, and print it."""
    async with (
        redis_server() as server,
        seated(server.url, lease_ms=2000) as one,
        seated(server.url, lease_ms=2000) as two,
        seated(server.url, lease_ms=2000) as three,
    ):
        await asyncio.sleep(3)  # leases of before the engine's start have ended
        figures: dict[str, Any] = {"calls": await calls(one, server)}
        server_s, own_s = await used_cpu_s(server), time.process_time()
        await asyncio.sleep(IDLE_S)
        figures["idle"] = {
            "server_cpu_percent": round((await used_cpu_s(server) - server_s) / IDLE_S * 100, 2),
            "cpu_percent_of_three_replicas": round((time.process_time() - own_s) / IDLE_S * 100, 2),
        }
        figures["changes"] = await changes((one, two, three), count)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=2000)
    asyncio.run(main(parser.parse_args().changes))
