"""Start-up and memory with a full cache: `python -m tests.benchmarks.scale --entries 100000`.

Fills a data directory through the proxy's own store and index (synthetic clustered vectors, 4 KB answers, one
partition), stops cleanly, then starts `cacheproxy serve` on it and watches from outside: seconds to ready, resident
memory over an empty proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import uvloop

from cacheproxy.app import assemble
from cacheproxy.clock import SystemClock
from cacheproxy.configure import load
from cacheproxy.model import Entry, Partition, Reply
from tests.benchmarks import server
from tests.support.polling import eventually

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cacheproxy.index.partitioned import PartitionedIndex

ENCODERS = Path(__file__).parents[2] / ".cacheproxy" / "encoders"
CLUSTERS, SPREAD, BATCH = 2000, 0.35, 500


def vectors(count: int, dim: int) -> NDArray[np.float32]:
    """Return unit vectors of shape (count, dim) around random centres."""
    source = np.random.default_rng(1)
    centres = source.standard_normal((CLUSTERS, dim))
    found = centres[source.integers(0, CLUSTERS, count)] + SPREAD * source.standard_normal((count, dim))
    unit: NDArray[np.float32] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


async def fill(data_dir: Path, count: int) -> None:
    """Store and index `count` entries, wait until the graph holds them, stop with a snapshot."""
    flags = {"data": {"dir": str(data_dir)}, "encoder": {"cache_dir": str(ENCODERS)}, "log": {"level": "error"}}
    async with assemble(load(environ={}, flags=flags)) as house:
        parts, now_s = house.pipeline.parts, SystemClock().now()
        assert parts.embedder is not None
        partition = Partition(category="default", compatibility=bytes(32), epoch=parts.embedder.epoch)
        message = {"role": "assistant", "content": "word " * 800}
        body = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        found = vectors(count, parts.embedder.dim)
        for start in range(0, count, BATCH):
            entries = [
                Entry(
                    id=f"{number:032x}",
                    fingerprint=number.to_bytes(32, "big"),
                    partition=partition,
                    tenant="t",
                    text="a question",
                    reply=Reply(body=body, source="body"),
                    created_s=now_s,
                    expires_s=now_s + 86400,
                    fill_ms=1.0,
                    vector=found[number],
                )
                for number in range(start, min(start + BATCH, count))
            ]
            await asyncio.gather(*(parts.store.put(entry, parts.store.fence) for entry in entries))
            for entry in entries:
                assert entry.vector is not None
                parts.index.add(partition, entry.id, entry.vector)
            await asyncio.sleep(0)
        index = cast("PartitionedIndex", parts.index)
        await eventually(lambda: not index.stats().due, "the graph is built", within_s=1800)


async def start(data_dir: Path) -> tuple[float, float]:
    """Start a proxy on the directory; return seconds to ready and megabytes resident."""
    async with server.backend() as backend:
        began = time.perf_counter()
        async with server.proxy(backend.port, data_dir, ENCODERS) as proxy:
            return time.perf_counter() - began, proxy.rss_mb()


async def main(count: int) -> dict[str, Any]:
    """Return the figures."""
    load_before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as scratch:
        empty_s, empty_mb = await start(Path(scratch) / "empty")
        began = time.perf_counter()
        await fill(Path(scratch) / "full", count)
        filled_s = time.perf_counter() - began
        full_s, full_mb = await start(Path(scratch) / "full")
    return {
        "entries": count,
        "load_before": load_before,
        "empty_s": round(empty_s, 2),
        "empty_mb": round(empty_mb, 1),
        "filled_s": round(filled_s, 1),
        "full_s": round(full_s, 2),
        "full_mb": round(full_mb, 1),
    }


def render(report: dict[str, Any]) -> str:
    """Return the table."""
    count, more_mb = report["entries"], report["full_mb"] - report["empty_mb"]
    return (
        f"Load of the machine before: {report['load_before']}; filling took {report['filled_s']:.0f} s, "
        "graph included.\n\n"
        "| | ready after | resident |\n|---|---|---|\n"
        f"| empty | {report['empty_s']:.1f} s | {report['empty_mb']:.0f} MB |\n"
        f"| {count:,} entries | {report['full_s']:.1f} s | {report['full_mb']:.0f} MB ({more_mb:+.0f} MB) |\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="write the report as JSON here")
    parsed = parser.parse_args()
    finished = uvloop.run(main(parsed.entries))
    if parsed.out:
        parsed.out.write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(finished))
