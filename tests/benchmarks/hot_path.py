"""The hot path: `python -m tests.benchmarks.hot_path --out FILE`, against a scripted backend.

CPU a request, p50 and p99 of every path at 1, 16 and 64 connections, and how late the event loop was meanwhile.

A second proxy, with the int8 encoder, is asked where an encoder works, at the least and the most connections.

Rounds are interleaved (every scenario once, then again); figures are medians over rounds with their spread. Generator,
backend and proxy share the machine, so throughput is a lower bound; CPU a request is the proxy's own, as the operating
system counts it. The report is written after each round, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from cacheproxy.bench.questions import unheard
from cacheproxy.bench.watching import within
from tests.benchmarks import encoder, load, server
from tests.benchmarks.report import render
from tests.benchmarks.scenarios import SCENARIOS, questions, request, scenario, variants

ENCODERS = Path(__file__).parents[2] / ".cacheproxy" / "encoders"
ENCODED = ("semantic hit", "miss", "miss, stream")
"""What the proxy with the int8 encoder is asked, too."""
INT8 = "int8"


async def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the report."""
    report: dict[str, Any] = {
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("litestar", "uvicorn", "aiohttp", "onnxruntime", "hnswlib")},
        "method": {"seconds": arguments.seconds, "rounds": arguments.rounds, "seed": arguments.seed},
        "encoder": _encoder(arguments.seed, "fp32"),
        INT8: {"encoder": _encoder(arguments.seed, INT8)},
    }
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    coded: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        async with (
            server.backend() as backend,
            server.proxy(backend.port, Path(scratch) / "fp32", ENCODERS) as proxy,
            server.proxy(backend.port, Path(scratch) / INT8, ENCODERS, INT8) as other,
        ):
            report["rss_mb_at_start"] = round(proxy.rss_mb(), 1)

            await _fill(proxy)
            await _fill(other)
            for number in range(arguments.rounds):
                for name, connections in itertools.product(SCENARIOS, arguments.connections):
                    asked = [(proxy, runs)]
                    if name in ENCODED and connections in (min(arguments.connections), max(arguments.connections)):
                        asked.append((other, coded))
                    for one, kept in asked:
                        told = " with the int8 encoder" if one is other else ""
                        sys.stderr.write(f"round {number + 1}: {name}, {connections} connections{told}\n")
                        kept.setdefault((name, connections), []).append(
                            await _measure(name, connections, one, backend, arguments, seed=arguments.seed + number)
                        )
                report["rss_mb_at_end"] = round(proxy.rss_mb(), 1)
                report["method"]["rounds"] = number + 1
                report["loop_lag_p99_ms"] = _lag_p99_ms([run for found in runs.values() for run in found])
                report["runs"] = _summaries(runs)
                report[INT8]["runs"] = _summaries(coded)
                if arguments.out:
                    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _encoder(seed: int, precision: str) -> dict[str, Any]:
    """Return what the encoder takes by itself, of the texts of hits and of misses."""
    misses = list(itertools.islice(unheard(seed * 1000 + 1), 1600))
    return {
        "short texts (semantic hit)": encoder.measure(variants(seed), ENCODERS, precision),
        "thirty tokens (miss)": encoder.measure(misses, ENCODERS, precision),
    }


async def _fill(proxy: server.Process) -> None:
    for question in questions():
        await load.run("127.0.0.1", proxy.port, iter([request(question)]), connections=1, seconds=0)


async def _measure(
    name: str,
    connections: int,
    proxy: server.Process,
    backend: server.Process,
    arguments: argparse.Namespace,
    *,
    seed: int,
) -> dict[str, Any]:
    port = backend.port if name == "backend alone" else proxy.port
    watched = backend if name == "backend alone" else proxy
    requests = scenario(name, seed * 1000 + connections)
    await load.run("127.0.0.1", port, requests, connections=connections, seconds=min(1.0, arguments.seconds))
    cpu_s, lag = watched.cpu_s(), await asyncio.to_thread(proxy.loop_lag)
    seen = await load.run("127.0.0.1", port, requests, connections=connections, seconds=arguments.seconds)
    cpu_s = watched.cpu_s() - cpu_s
    after = await asyncio.to_thread(proxy.loop_lag)
    return {
        "requests": len(seen.total_ms),
        "per_s": len(seen.total_ms) / seen.elapsed_s,
        "cpu_ms": cpu_s * 1000 / len(seen.total_ms),
        "p50_ms": _quantile(seen.total_ms, 0.5),
        "p99_ms": _quantile(seen.total_ms, 0.99),
        "first_p50_ms": _quantile(seen.first_ms, 0.5),
        "outcomes": seen.outcomes,
        "lag": {float(bound): count - lag.get(bound, 0.0) for bound, count in after.items()},
    }


def _lag_p99_ms(runs: list[dict[str, Any]]) -> float | None:
    """Return what 99 in 100 looks at the event loop were within; None of no look at all."""
    counts: Counter[float] = Counter()
    for run in runs:
        counts.update(run["lag"])
    return round(within(dict(sorted(counts.items())), 0.99) * 1000, 2) if any(counts.values()) else None


def _summaries(runs: dict[tuple[str, int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"scenario": name, "connections": connections, **_summary(found)} for (name, connections), found in runs.items()
    ]


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"requests": sum(run["requests"] for run in found)}
    for key in ("per_s", "cpu_ms", "p50_ms", "p99_ms", "first_p50_ms"):
        values = [run[key] for run in found]
        summary[key] = {
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
        }
    outcomes: dict[str, int] = {}
    for run in found:
        for name, count in run["outcomes"].items():
            outcomes[name] = outcomes.get(name, 0) + count
    return {**summary, "lag_p99_ms": _lag_p99_ms(found), "outcomes": outcomes}


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.hot_path", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the report as JSON here")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each run is repeated (default 3)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args()
    sys.stdout.write(render(uvloop.run(main(parsed))))
