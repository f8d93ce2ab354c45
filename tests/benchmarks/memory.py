"""Bytes an entry, by component: `python -m tests.benchmarks.memory --entries 20000`.

Each component in a process of its own, filled with entries of 384 components and 1 KB of answer; what the process
grew by, over the number of entries. Resident memory, so that allocators and arenas count. Load of the machine does not.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import uvloop

from cacheproxy.bench.watching import process
from cacheproxy.clock import SystemClock
from cacheproxy.embed.memo import Memo
from cacheproxy.index.partitioned import PartitionedIndex
from cacheproxy.model import Embedding, Entry, Partition, Reply
from cacheproxy.settings import Index, Store
from cacheproxy.store.open import open_store
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

DIM, EPOCH, BATCH = 384, "memory", 500
ANSWER = "word " * 200


def entry(number: int, vector: NDArray[np.float32], now_s: float) -> Entry:
    """Return an entry with an answer of its own, of 1 KB."""
    message = {"role": "assistant", "content": f"{number} {ANSWER}"}
    body = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return Entry(
        id=f"{number:032x}",
        fingerprint=number.to_bytes(32, "big"),
        partition=Partition(category="default", compatibility=bytes(32), epoch=EPOCH),
        tenant="t",
        text=f"question number {number}",
        reply=Reply(body=body, source="body"),
        created_s=now_s,
        expires_s=now_s + 86400,
        fill_ms=1.0,
        vector=vector,
    )


def vectors(count: int) -> NDArray[np.float32]:
    """Return random unit vectors."""
    found = np.random.default_rng(1).standard_normal((count, DIM)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


def rss() -> float:
    """Return resident bytes now."""
    gc.collect()
    return (process(os.getpid())[1] or 0.0) * 2**20


async def index(count: int, *, scopes: int, graph: bool, kept: str = "float32") -> float:
    """Return what the index grows by: flat rows of some scopes, or one graph."""
    found = vectors(count)
    config = Index(vectors=kept) if graph else Index(vectors=kept, flat_limit=count + 1)
    before = rss()
    async with PartitionedIndex(config, dim=DIM, epoch=EPOCH) as filled:
        for number in range(count):
            scope = (number % scopes).to_bytes(32, "big")
            filled.add(Partition(category="default", compatibility=scope, epoch=EPOCH), f"{number:032x}", found[number])
            if number % BATCH == 0:
                await asyncio.sleep(0)
        await eventually(lambda: not filled.stats().due, "the graph is built", within_s=1800)
        return rss() - before


async def store(count: int, url: str, *, hot: bool) -> float:
    """Return what the store grows by, with all entries held decoded or none."""
    found, clock = vectors(count), SystemClock()
    with tempfile.TemporaryDirectory() as scratch:
        before = rss()
        async with open_store(Store(url=url, hot_bytes=2**34 if hot else 0), Path(scratch), clock) as kept:
            for start in range(0, count, BATCH):
                some = [entry(n, found[n].copy(), clock.now()) for n in range(start, min(start + BATCH, count))]
                await asyncio.gather(*(kept.put(one, kept.fence) for one in some))
            return rss() - before


async def memo(count: int) -> float:
    """Return what remembered embeddings grow by."""
    found = vectors(count)
    before, kept = rss(), Memo(count)
    for number in range(count):
        kept.put(number.to_bytes(16, "big"), Embedding(vector=found[number].copy()))
    return rss() - before


COMPONENTS: dict[str, Callable[[int], Awaitable[float]]] = {
    "index, one graph": lambda count: index(count, scopes=1, graph=True),
    "index, flat, one scope": lambda count: index(count, scopes=1, graph=False),
    "index, flat, ten entries a scope": lambda count: index(count, scopes=max(1, count // 10), graph=False),
    "index, int8, one graph": lambda count: index(count, scopes=1, graph=True, kept="int8"),
    "index, int8, flat, one scope": lambda count: index(count, scopes=1, graph=False, kept="int8"),
    "index, int8, flat, ten entries a scope": lambda count: index(
        count, scopes=max(1, count // 10), graph=False, kept="int8"
    ),
    "store, SQLite, none held decoded": lambda count: store(count, "", hot=False),
    "store, SQLite, all held decoded": lambda count: store(count, "", hot=True),
    "store, memory://": lambda count: store(count, "memory://", hot=True),
    "remembered embedding": memo,
}


def main(arguments: argparse.Namespace) -> None:
    """Measure every component in a process of its own, or the one that was asked for."""
    if arguments.one:
        grew = uvloop.run(_measured(arguments.one, arguments.entries))
        sys.stdout.write(json.dumps({"bytes": round(grew / arguments.entries)}) + "\n")
        return
    found: dict[str, int] = {}
    for name in COMPONENTS:
        sys.stderr.write(f"{name}\n")
        command = [sys.executable, "-m", "tests.benchmarks.memory", "--entries", str(arguments.entries), "--one", name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        found[name] = json.loads(said)["bytes"]
    report = {"entries": arguments.entries, "bytes": found}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(report))


def render(report: dict[str, Any]) -> str:
    """Return the table."""
    lines = [f"| component | bytes an entry, of {report['entries']:,} |", "|---|---|"]
    lines += [f"| {name} | {count:,} |" for name, count in report["bytes"].items()]
    return "\n".join(lines) + "\n"


async def _measured(name: str, count: int) -> float:
    return await COMPONENTS[name](count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--out", type=Path, help="write the report as JSON here")
    parser.add_argument("--one", choices=COMPONENTS, help=argparse.SUPPRESS)
    main(parser.parse_args())
