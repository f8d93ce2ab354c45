"""What one request of the data port costs in Python: `python -m tests.benchmarks.hit`, a quarter of a minute.

The whole proxy with its defaults, in this process: requests are handed to the protocol as bytes, and its answers are
taken from it, without sockets. So it counts what the code does, whatever else the machine does meanwhile; a real
request adds three system calls. `--before CHECKOUT` has another checkout's code (with a `.venv`) measured by turns.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import uvloop
from uvicorn.server import ServerState

from cacheproxy import settings
from cacheproxy.app import assemble
from cacheproxy.http.listener import data_app, listener
from tests.benchmarks.scenarios import KEY, questions, request
from tests.benchmarks.server import backend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ENCODERS = Path(__file__).parents[2] / ".cacheproxy" / "encoders"
CONNECTIONS, TURNS, ROUNDS = 8, 250, 8
_SDK = "".join(
    f"{name}: {value}\r\n"
    for name, value in (
        ("accept", "application/json"),
        ("accept-encoding", "gzip, deflate"),
        ("user-agent", "OpenAI/Python 1.99.0"),
        ("x-stainless-lang", "python"),
        ("x-stainless-package-version", "1.99.0"),
        ("x-stainless-os", "Linux"),
        ("x-stainless-arch", "x64"),
        ("x-stainless-runtime", "CPython"),
        ("x-stainless-runtime-version", "3.11.7"),
        ("x-stainless-async", "async:asyncio"),
        ("x-stainless-retry-count", "0"),
        ("x-stainless-read-timeout", "600"),
    )
)
"""What OpenAI's Python client sends besides."""


class Wire:
    """A transport that keeps the last answer and counts those with status 200."""

    def __init__(self) -> None:
        self.last = b""
        self.answered = 0

    def write(self, data: bytes) -> None:
        """Take bytes of an answer; the head comes first."""
        if data.startswith(b"HTTP/1.1 200"):
            self.answered += 1
            self.last = data
        else:
            self.last += data

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, _: str, default: Any = None) -> Any:
        """There is no socket."""
        return default

    def close(self) -> None:
        """Nothing is to be closed."""

    pause_reading = resume_reading = abort = close


class Bench:
    """Connections of the data port."""

    def __init__(self, made: Callable[[], asyncio.Protocol]) -> None:
        self._wires = [Wire() for _ in range(CONNECTIONS)]
        self._protocols = [made() for _ in self._wires]
        for protocol, wire in zip(self._protocols, self._wires, strict=True):
            protocol.connection_made(cast("asyncio.Transport", wire))

    async def fill(self, requests: list[bytes]) -> None:
        """Ask each once, one after the other."""
        for one in requests:
            await self._turn(self._protocols[:1], [one])

    async def us(self, requests: list[bytes]) -> float:
        """Return microseconds of CPU a request."""
        began_s = time.process_time()
        for turn in range(TURNS):
            await self._turn(self._protocols, [requests[(turn + at) % len(requests)] for at in range(CONNECTIONS)])
        return (time.process_time() - began_s) / (TURNS * CONNECTIONS) * 1e6

    @property
    def last(self) -> bytes:
        """The last answer of the first connection."""
        return self._wires[0].last

    async def _turn(self, protocols: list[asyncio.Protocol], requests: list[bytes]) -> None:
        due = [wire.answered + 1 for wire in self._wires[: len(protocols)]]
        for protocol, one in zip(protocols, requests, strict=True):
            protocol.data_received(one)
        while any(wire.answered < count for wire, count in zip(self._wires, due, strict=False)):  # noqa: ASYNC110 -- turns of the loop
            await asyncio.sleep(0)


@asynccontextmanager
async def opened() -> AsyncIterator[Bench]:
    """Open a proxy with its defaults over the scripted backend, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        async with backend() as upstream:
            config = settings.Settings(
                upstream=settings.Upstream(url=f"http://127.0.0.1:{upstream.port}/v1"),
                encoder=settings.Encoder(cache_dir=str(ENCODERS)),
                data=settings.Data(dir=folder),
            )
            async with assemble(config) as house:
                made = listener(data_app(house.edge), config.server, house.edge.door, drain_s=1).config
                made.load()
                state = ServerState()
                yield Bench(
                    lambda: cast("Any", made.http_protocol_class)(config=made, server_state=state, app_state={})
                )


def scenarios() -> dict[str, list[bytes]]:
    """Return what is asked over and over, by name."""
    health = f"GET /healthz HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()
    return {
        "exact hit": [request(text) for text in questions()],
        "exact hit, stream": [request(text, stream=True) for text in questions()],
        "exact hit, a client's headers": [request(text, headers=_SDK) for text in questions()],
        "health": [health],
    }


async def measured(profile: str) -> dict[str, float]:
    """Return microseconds a request of each scenario, the least of some rounds."""
    found: dict[str, list[float]] = {}
    async with opened() as bench:
        asked = scenarios()
        for requests in asked.values():
            await bench.fill(requests)
        if profile:
            await bench.us(asked[profile])
            with cProfile.Profile() as profiler:
                await bench.us(asked[profile])
            pstats.Stats(profiler).sort_stats("tottime").print_stats(60)
            return {}
        for _ in range(ROUNDS):
            for name, requests in asked.items():
                found.setdefault(name, []).append(await bench.us(requests))
                if name != "health":
                    assert b"x-cacheproxy-tier: exact" in bench.last, bench.last
    return {name: min(times) for name, times in found.items()}


def _of(checkout: Path) -> dict[str, float]:
    done = subprocess.run(
        [str(checkout / ".venv/bin/python"), "-P", str(Path(__file__).absolute()), "--json"],
        cwd=checkout, env={"PYTHONPATH": "."}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return cast("dict[str, float]", json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, and print a line a scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout, measured by turns")
    parser.add_argument("--runs", type=int, default=3, help="processes of each, with --before")
    parser.add_argument("--profile", choices=scenarios(), default="", help="where the time of one scenario goes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.before is None:
        found = uvloop.run(measured(args.profile))
        lines = [json.dumps(found)] if args.json else [f"{name:30} {us:7.1f} us" for name, us in found.items()]
    else:
        runs = [(_of(args.before), _of(Path.cwd())) for _ in range(args.runs)]
        lines = []
        for name in scenarios():
            before, now = ([run[side][name] for run in runs] for side in (0, 1))
            was, is_now = statistics.median(before), statistics.median(now)
            lines.append(f"{name:30} {was:7.1f} us before, {is_now:7.1f} now ({is_now / was - 1:+.0%})")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
