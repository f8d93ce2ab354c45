"""`python -m tests.benchmarks.replicas --out docs/benchmarks-replicas.json`: what several proxies promise, measured.

Everything is real: `cacheproxy serve` processes, redis-server, HTTP. The backend is scripted and answers at once. All
of it, with the callers, shares the cores of one machine; load is closed-loop with a pause, so that queues stay short.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks import replicas_away, replicas_cold, replicas_seen
from tests.benchmarks.replicas_report import render

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PARTS: dict[str, Callable[[Path, argparse.Namespace], Awaitable[dict[str, Any]]]] = {
    "visible": replicas_seen.visible,
    "races": replicas_seen.races,
    "divergence": replicas_seen.divergence,
    "away": replicas_away.away,
    "cold": replicas_cold.cold,
    "throughput": replicas_seen.throughput,
}


async def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the parts that were asked for and return the report."""
    report: dict[str, Any] = {
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {"redis": _redis_version(), "redis-py": version("redis")},
        "load_before": [round(one, 2) for one in os.getloadavg()],
    }
    for name in arguments.parts:
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="replicas-") as directory:
            report[name] = await PARTS[name](Path(directory), arguments)
        sys.stderr.write(f"{name}: {time.monotonic() - began_s:.0f} s {json.dumps(report[name])[:300]}\n")
    return report


def _redis_version() -> str:
    said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[2].removeprefix("v=")


def _cpu_name() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1].strip() if found else platform.processor()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--changes", type=int, default=300, help="inserts and purges that are timed")
    parser.add_argument("--races", type=int, default=100_000, help="least number of purge/serve races")
    parser.add_argument("--races-s", type=float, default=240.0, help="longest time for them")
    parser.add_argument("--away-s", type=float, default=8.0, help="how long the engine is away each time")
    parser.add_argument("--entries", type=int, default=100_000, help="what a cold replica finds")
    parser.add_argument("--throughput-s", type=float, default=6.0, help="for each number of replicas")
    finished = asyncio.run(main(parsed := parser.parse_args()))
    if parsed.out:
        parsed.out.write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(render(finished))
