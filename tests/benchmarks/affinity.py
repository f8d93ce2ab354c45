"""What affinity brings: three replicas of one cache behind HAProxy, by a caller's replica or by turns.

    python -m tests.benchmarks.affinity --out docs/benchmarks-affinity.json

Real: HAProxy with the shipped file, three proxies, Redis. Scripted: the backend, which takes `BACKEND_S`, and callers
in a closed loop. Each caller asks questions of its own, some for the first time, some again: the last one (`soon`) or
one of the last twenty (`later`), and some twice at the same moment (`twice`), as a page in two tabs does.
The same seed asks the same in both ways, each first by turns; told are medians over seeds and ranges.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tests.support.balancer import SERVED_BY, balancing
from tests.support.openai_wire import completion, encode
from tests.support.ports import free_port
from tests.support.process import ServerProcess
from tests.support.proxy import CHAT, chat
from tests.support.redis import redis_server
from tests.support.replicas import Caller
from tests.support.upstream import ScriptedUpstream, Wait, answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.balancer import Balancer

REPLICAS = 3
BACKEND_S = 0.2
KINDS = ("new", "soon", "later", "twice")
SHARES = (0.3, 0.25, 0.35, 0.1)
"""How often a caller asks something new, the last question again, one of the last twenty, something new twice."""
_EXACT = {"x-cacheproxy-tier": "exact", "content-type": "application/json"}


@dataclass(slots=True)
class Tally:
    """What callers saw."""

    hit_ms: dict[str, list[float]] = field(default_factory=lambda: {"soon": [], "later": []})
    outcomes: Counter[str] = field(default_factory=Counter)
    missed_again: int = 0
    """Questions asked before that went to the backend again."""
    away: int = 0
    """Requests that another replica answered than the one that answered the caller's first."""
    asked: int = 0


def steps(source: Random, count: int) -> Iterator[tuple[str, str]]:
    """Yield what a caller does: the kind, and the question."""
    known: list[str] = []
    for _ in range(count):
        kind = source.choices(KINDS, SHARES)[0] if known else "new"
        if kind in ("new", "twice"):
            known.append(f"{source.getrandbits(64):016x} of {len(known)}?")
        yield kind, source.choice(known[-20:]) if kind == "later" else known[-1]


async def one_caller(balancer: Balancer, key: str, source: Random, count: int, tally: Tally) -> None:
    """Ask one after the other on a connection that is kept, and a second one for what is asked twice."""
    callers = [Caller(balancer.url), Caller(balancer.url)]
    headers, home = {**_EXACT, "authorization": f"Bearer {key}"}, ""
    for kind, text in steps(source, count):
        body = encode(chat(text))
        asking = callers if kind == "twice" else callers[:1]
        began = time.perf_counter()
        told = await asyncio.gather(*(caller.call("POST", CHAT, headers, body) for caller in asking))
        took_ms = (time.perf_counter() - began) * 1000
        for one in told:
            assert one.status == 200, one.body
            home = home or one.get(SERVED_BY) or ""
            tally.asked += 1
            tally.away += one.get(SERVED_BY) != home
            tally.outcomes[f"{kind} {one.outcome}"] += 1
        if kind in tally.hit_ms:
            tally.missed_again += told[0].outcome != "hit"
            if told[0].outcome == "hit":
                tally.hit_ms[kind].append(took_ms)
    for caller in callers:
        caller.leave()


async def measure(balancer: Balancer, upstream: ScriptedUpstream, name: str, seed: int, sizes: tuple[int, int]) -> Any:
    """Return the figures of one run. Its callers are nobody's before: nothing is kept for them."""
    callers, count = sizes
    upstream.reset()
    upstream.always([Wait(BACKEND_S), *answer(completion("An answer of some words, as they come."))])
    tally = Tally()
    began = time.perf_counter()
    await asyncio.gather(
        *(one_caller(balancer, f"sk-{name}-{seed}-{n}", Random(f"{seed} {n}"), count, tally) for n in range(callers))
    )
    asked = {kind: sum(n for told, n in tally.outcomes.items() if told.startswith(kind)) for kind in KINDS}
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "requests": tally.asked,
        "upstream_calls": upstream.calls,
        "calls_needed": asked["new"] + asked["twice"] // 2,
        "missed_again": tally.missed_again,
        "away_from_home_percent": round(100 * tally.away / tally.asked, 1),
        **{
            f"{kind}_hit_p{percent}_ms": round(statistics.quantiles(times, n=100)[percent - 1], 2)
            for kind, times in tally.hit_ms.items()
            for percent in (50, 95)
        },
    }


async def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both ways for every seed and return the report."""
    runs: dict[str, list[Any]] = {"affinity": [], "by turns": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        async with AsyncExitStack() as stack:
            redis = await stack.enter_async_context(redis_server())
            upstream = await stack.enter_async_context(ScriptedUpstream())
            ports = [free_port() for _ in range(REPLICAS)]
            for number, port in enumerate(ports):
                flags = ("--port", str(port), "--store", redis.url)
                server = await ServerProcess.start(folder / f"data-{number}", upstream.url, *flags)
                stack.push_async_callback(server.kill)
            balancers = {}
            for way in runs:
                place = folder / way.replace(" ", "-")
                place.mkdir()
                balancers[way] = await stack.enter_async_context(balancing(place, ports, affinity=way == "affinity"))
            for seed in range(arguments.seeds):
                for way, balancer in sorted(balancers.items(), reverse=bool(seed % 2)):
                    sys.stderr.write(f"seed {seed}: {way}\n")
                    sizes = arguments.callers, arguments.requests
                    runs[way].append(await measure(balancer, upstream, way.replace(" ", "-"), seed, sizes))
    return {
        "method": {**vars(arguments), "out": None, "replicas": REPLICAS, "backend_s": BACKEND_S,
                   "shares": dict(zip(KINDS, SHARES, strict=True)), "cores": os.cpu_count()},
        "median": {way: _middle(found) for way, found in runs.items()},
        "range": {way: _range(found) for way, found in runs.items()},
        "by turns less affinity, seed by seed": _paired(runs["by turns"], runs["affinity"]),
        "runs": runs,
    }  # fmt: skip


def _middle(found: list[Any]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in found) for name in found[0]}


def _range(found: list[Any]) -> dict[str, list[float]]:
    return {name: [min(run[name] for run in found), max(run[name] for run in found)] for name in found[0]}


def _paired(ones: list[Any], others: list[Any]) -> dict[str, Any]:
    differences = [{name: one[name] - other[name] for name in one} for one, other in zip(ones, others, strict=True)]
    return {"median": _middle(differences), "range": _range(differences)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--requests", type=int, default=60)
    told = parser.parse_args()
    report = json.dumps(asyncio.run(main(told)), indent=2, default=str)
    if told.out:
        told.out.write_text(report + "\n", encoding="utf-8")
    print(report)  # noqa: T201 - its output
