"""Peers side by side in one run: `python -m tests.benchmarks.peers --out FILE`.

LiteLLM's proxy, cachellm-proxy and GPTCache, each installed from PyPI into an environment of its own (`--home`, two
gigabytes), beside cacheproxy: the same requests, the same generator and backend, the same machine. Rounds are
interleaved: every scenario of every peer once, then all again. What the backend was asked tells what was a hit, of each
peer alike. Ratios come first: they travel better than milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from cacheproxy.bench.questions import askings
from cacheproxy.bench.target import scripted
from cacheproxy.bench.upstream import Pace
from tests.benchmarks import load, peers_http
from tests.benchmarks.scenarios import NEVER_SIMILAR, questions, request, scenario, variants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.benchmarks.peers_http import Peer

SCENARIOS = ("exact hit", "exact hit, stream", "semantic hit", "miss", "miss, stream")
FIELDS: dict[str, Any] = {"temperature": 0}
"""Of every request: cachellm-proxy caches none without it."""
ENGINES = ("default", "sbert", "same")
OURS, OURS_INT8 = "cacheproxy", "cacheproxy, int8 encoder"
ENCODED = ("semantic hit", "miss", "miss, stream")
"""What the one with the int8 encoder is asked: all else is the same without an encoder."""
CAVEATS = (
    "One machine: generator, backend and the peer that is measured share its cores; the others are stopped meanwhile "
    "(SIGSTOP): some go on working after their last answer.",
    "LiteLLM's in-memory cache is exact: it has no semantic hits here, and its misses embed nothing. Versions differ: "
    "1.92.0 took 3 ms CPU an exact hit here, 1.106.0 takes 9 to 10.",
    "cachellm-proxy runs the same encoder graph as cacheproxy, from disk; onnxruntime's threads are its own.",
    "GPTCache runs in process, one text after the other whatever the connections say, without HTTP, keys or JSON: "
    "its figures flatter it. It has no exact tier: an exact hit is a lookup by similarity. Engines: default is its "
    "own (an ALBERT from a hub, where there is one), sbert its class for sentence-transformers, same our graph.",
    "cacheproxy verifies each semantic hit by rules, features and a cross-encoder; the others compare a distance "
    "with a threshold.",
    "Exact and semantic requests are of 20 questions; a semantic one is a mechanical rewording, a miss two "
    "questions in one that nobody asked. What share of them hit says nothing of quality.",
    "The int8 encoder is an option (`encoder.precision`) beside the default; the others have fp32. Goals are judged on "
    "the default.",
    "Every request has temperature 0: cachellm-proxy caches none without it.",
    "bypassed counts questions that a peer took for volatile, or for none to be cached, so that it looked nothing up.",
    "hits is the share that the backend was not asked for.",
)


def unlike(seed: int) -> Iterator[str]:
    """Yield questions that nobody asked, of about thirty tokens: two at a time of those that `verifier train` ships.

    Other words in one template, as `scenarios.fresh` has them, are one question to a cache that compares cosines.
    """
    known = askings()
    source = random.Random(seed)
    while True:
        one, other = source.sample(known, 2)
        yield f"{one.text} And another thing: {other.text}"


def requests_of(scene: str, seed: int) -> Iterator[bytes]:
    """Return the endless requests of a scenario, the same for every peer."""
    if not scene.startswith("miss"):
        return scenario(scene, seed, **FIELDS)
    stream = scene.endswith("stream")
    return (request(text, stream=stream, headers=NEVER_SIMILAR, **FIELDS) for text in unlike(seed + stream))


class Engine:
    """GPTCache with one of its engines, in a process of its own."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = f"GPTCache, {name} engine"
        self._process = process

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    async def told(self) -> dict[str, Any]:
        """Return the next line it says."""
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(await self._process.stdout.readline() or b'{"error": "it ended"}')
        return told

    async def run(self, texts: list[str], seconds: float, *, fill: bool) -> dict[str, Any]:
        """Ask it texts for some seconds (0: each once)."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"texts": texts, "seconds": seconds, "fill": fill}).encode() + b"\n")
        return await self.told()


@asynccontextmanager
async def engine(home: Path, name: str, scratch: Path, encoder: Path) -> AsyncIterator[Engine | str]:
    """Run GPTCache with an engine, filled with the questions; yields why not where it cannot be loaded."""
    python, folder = peers_http.install(home, "gptcache"), scratch / f"gptcache-{name}"
    folder.mkdir()
    command = [str(python), str(peers_http.HERE / "peers_gptcache.py"), name, str(encoder), str(folder)]
    with (scratch / f"gptcache-{name}.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, limit=2**22
        )
    found = Engine(name, child)
    try:
        async with asyncio.timeout(peers_http.START_S):
            said = await found.told()
            if "error" not in said:
                await found.run(questions(), 0, fill=True)
        yield str(said["error"]) if "error" in said else found
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the report, which is written after each round: a run cut short leaves what it has."""
    runs: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    absent: dict[str, str] = {}
    home = arguments.home.absolute()
    home.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cacheproxy-peers-") as name:
        scratch = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            backend = await stack.enter_async_context(scripted(Pace(), arguments.seed))
            peers = [
                await stack.enter_async_context(peers_http.ours(backend.port, scratch, name, precision))
                for name, precision in ((OURS, "fp32"), (OURS_INT8, "int8"))
            ]
            encoder = peers_http.encoder_folder(scratch)
            engines: list[Engine] = []
            if "litellm" in arguments.peers:
                peers.append(await stack.enter_async_context(peers_http.litellm(home, backend.port, scratch)))
            if "cachellm" in arguments.peers:
                peers.append(await stack.enter_async_context(peers_http.cachellm(home, backend.port, scratch, encoder)))
            for one in ENGINES if "gptcache" in arguments.peers else ():
                found = await stack.enter_async_context(engine(home, one, scratch, encoder))
                if isinstance(found, str):
                    absent[f"GPTCache, {one} engine"] = found
                else:
                    engines.append(found)
            for peer in peers:
                await _fill(peer)
            began_s, report = time.monotonic(), _report(runs, absent, arguments, rounds=0)
            for number in range(arguments.rounds):
                await _round(runs, peers, engines, backend.port, arguments, number)
                report = _report(runs, absent, arguments, rounds=number + 1)
                if arguments.out:
                    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
                took_s = (time.monotonic() - began_s) / (number + 1)
                if took_s * (number + 2) > arguments.within_s:
                    sys.stderr.write(f"{number + 1} rounds: another one would take longer than --within-s\n")
                    break
    return report


def _report(
    runs: dict[tuple[str, str, int], list[dict[str, Any]]],
    absent: dict[str, str],
    arguments: argparse.Namespace,
    *,
    rounds: int,
) -> dict[str, Any]:
    return {
        "machine": {"cores": os.cpu_count(), "load_average": os.getloadavg(), "python": platform.python_version()},
        "method": {"seconds": arguments.seconds, "rounds": rounds, "seed": arguments.seed},
        "packages": peers_http.PACKAGES,
        "caveats": CAVEATS,
        "absent": absent,
        "runs": [
            {"scenario": scene, "connections": connections, "peer": peer, **_summary(found)}
            for (scene, connections, peer), found in (((s, c, p), f) for (s, p, c), f in runs.items())
        ],
    }


async def _fill(peer: Peer) -> None:
    for text in questions():
        for stream in (False, True):
            await load.run(
                "127.0.0.1", peer.port, iter([request(text, stream=stream, **FIELDS)]), connections=1, seconds=0
            )


async def _round(
    runs: dict[tuple[str, str, int], list[dict[str, Any]]],
    peers: list[Peer],
    engines: list[Engine],
    backend_port: int,
    arguments: argparse.Namespace,
    number: int,
) -> None:
    everybody = [*(peer.pid for peer in peers), *(one.pid for one in engines)]
    for scene, connections in itertools.product(SCENARIOS, arguments.connections):
        for peer in peers:
            if peer.name == "LiteLLM" and scene == "semantic hit":
                continue
            if peer.name == OURS_INT8 and scene not in ENCODED:
                continue
            sys.stderr.write(f"round {number + 1}: {scene}, {connections} connections, {peer.name}\n")
            seed = (arguments.seed + number) * 1000 + connections
            with peers_http.alone(peer.pid, everybody):
                found = await _measure(peer, scene, connections, backend_port, arguments.seconds, seed)
            runs.setdefault((scene, peer.name, connections), []).append(found)
    for one, scene in itertools.product(engines, ("exact hit", "semantic hit", "miss")):
        sys.stderr.write(f"round {number + 1}: {scene}, {one.name}\n")
        seed = (arguments.seed + number) * 1000
        texts = {
            "exact hit": questions(),
            "semantic hit": variants(seed),
            "miss": list(itertools.islice(unlike(seed), 2000)),
        }[scene]
        with peers_http.alone(one.pid, everybody):
            told = await one.run(texts, arguments.seconds, fill=scene == "miss")
        found = {**{key: told[key] for key in ("requests", "per_s", "cpu_ms", "p50_ms", "p99_ms")}}
        runs.setdefault((scene, one.name, min(arguments.connections)), []).append(
            {**found, "hits": told["hits"] / told["requests"]}
        )


async def _measure(
    peer: Peer, scene: str, connections: int, backend_port: int, seconds: float, seed: int
) -> dict[str, Any]:
    requests = requests_of(scene, seed)
    await load.run("127.0.0.1", peer.port, requests, connections=connections, seconds=min(0.5, seconds))
    asked, cpu_s = await _answered(backend_port), peer.cpu_s()
    seen = await load.run("127.0.0.1", peer.port, requests, connections=connections, seconds=seconds)
    asked, cpu_s = await _answered(backend_port) - asked, peer.cpu_s() - cpu_s
    total = sorted(seen.total_ms)
    good = sum(count for name, count in seen.outcomes.items() if name.startswith("200"))
    return {
        "requests": len(total),
        "failed": len(total) - good,
        "bypassed": sum(count for name, count in seen.outcomes.items() if "bypass" in name),
        "per_s": len(total) / seen.elapsed_s,
        "cpu_ms": cpu_s * 1000 / len(total),
        "p50_ms": total[len(total) // 2],
        "p99_ms": total[min(len(total) - 1, int(0.99 * len(total)))],
        "hits": 1 - asked / len(total),
    }


async def _answered(backend_port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", backend_port)
    writer.write(b"GET /answered HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    told = json.loads(await reader.readexactly(length))
    writer.close()
    return int(told["answered"])


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {key: sum(run.get(key, 0) for run in found) for key in ("requests", "failed", "bypassed")}
    for key in ("per_s", "cpu_ms", "p50_ms", "p99_ms", "hits"):
        values = [run[key] for run in found]
        told = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        summary[key] = {name: round(value, 3) for name, value in told.items()}
    return summary


def render(report: dict[str, Any]) -> str:
    """Return the ratios, then the figures, then what to know before believing them."""
    runs, machine, method = report["runs"], report["machine"], report["method"]
    of_ours = {(one["scenario"], one["connections"]): one for one in runs if one["peer"] == OURS}
    of_int8 = {(one["scenario"], one["connections"]): one for one in runs if one["peer"] == OURS_INT8}
    lines = [
        f"{machine['cores']} cores, load average {machine['load_average'][0]:.1f}, Python {machine['python']}; "
        f"{method['rounds']} interleaved rounds of {method['seconds']:g} s, medians with [min, max].",
        "",
        "| cacheproxy against | path | connections | times the throughput | of the CPU a request | of the p50 "
        "| times the throughput with the int8 encoder |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in runs:
        where = one["scenario"], one["connections"]
        if one["peer"] not in (OURS, OURS_INT8):
            mine, coded = of_ours[where], of_int8.get(where)
            per_s, cpu, p50 = (
                mine[key]["median"] / max(1e-9, one[key]["median"]) for key in ("per_s", "cpu_ms", "p50_ms")
            )
            int8 = f"{coded['per_s']['median'] / max(1e-9, one['per_s']['median']):.1f}" if coded else ""
            lines.append(
                f"| {one['peer']} | {one['scenario']} | {one['connections']} | {per_s:.1f} | {cpu:.2f} | {p50:.2f} "
                f"| {int8} |"
            )
    lines += [
        "",
        "| path | connections | peer | requests/s | CPU ms a request | p50 ms | p99 ms | hits | failed | bypassed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(runs, key=lambda run: (SCENARIOS.index(run["scenario"]), run["connections"])):
        cells = [
            _spread(one["per_s"], 0),
            _spread(one["cpu_ms"], 2),
            _spread(one["p50_ms"], 2),
            _spread(one["p99_ms"], 1),
        ]
        lines.append(
            f"| {one['scenario']} | {one['connections']} | {one['peer']} | {' | '.join(cells)} "
            f"| {100 * one['hits']['median']:.0f} % | {one['failed']} | {one['bypassed']} |"
        )
    lines += ["", *(f"- {name} is absent: {why}" for name, why in report["absent"].items())]
    return "\n".join([*lines, *(f"- {caveat}" for caveat in report["caveats"])]) + "\n"


def _spread(value: dict[str, float], digits: int) -> str:
    return f"{value['median']:.{digits}f} [{value['min']:.{digits}f}, {value['max']:.{digits}f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the report as JSON here")
    parser.add_argument("--home", type=Path, default=Path(".venv-peers"), help="environments (default .venv-peers)")
    parser.add_argument("--peers", nargs="+", default=["litellm", "cachellm", "gptcache"], choices=peers_http.PACKAGES)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each run is repeated (default 3)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--within-s", type=float, default=1e9, help="begin no round that would end later than this")
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args()
    sys.stdout.write(render(uvloop.run(main(parsed))))
