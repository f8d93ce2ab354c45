"""A bench: warm-up, repeats, and the report that comes of them."""

from __future__ import annotations

import itertools
import os
import platform
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy import __version__
from cacheproxy.bench.arrivals import bursty, poisson
from cacheproxy.bench.asking import encode
from cacheproxy.bench.client import Connections
from cacheproxy.bench.drive import Run, closed, opened
from cacheproxy.bench.figures import Figures, figures
from cacheproxy.bench.watching import between
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cacheproxy.bench.arrivals import Arrival
    from cacheproxy.bench.asking import Ask, Asking
    from cacheproxy.bench.client import Answer, Target
    from cacheproxy.bench.watching import Watch

SCHEMA = 1
_MOST_WAITING = 8192
"""Most unanswered requests of an open loop; what is due beyond them is dropped, and counted as an error."""
_FILLERS = 4
"""Callers who ask what is to be kept beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How a target is loaded in each repeat."""

    seconds: float
    connections: int = 0
    """Callers of a closed loop; 0: an open one."""
    rate: float = 0.0
    """Requests a second of an open loop."""
    bursts: bool = False
    """Whether they come in bursts (simulated), not as a Poisson process."""
    arrivals: Callable[[], Iterable[Arrival]] | None = None
    """When they come, in the place of a rate."""
    most: int = 200_000
    """Most requests of a repeat."""

    def due(self, seconds: float, seed: int) -> Iterable[Arrival]:
        """Return the arrivals of one run of an open loop."""
        if self.arrivals is not None:
            return itertools.islice(self.arrivals(), self.most)
        make = bursty if self.bursts else poisson
        return itertools.islice(make(self.rate, seconds, seed), self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is measured, and how often."""

    target: Target
    watch: Watch
    load: Load
    asking: Callable[[int], Asking]
    """Makes who asks of a seed."""
    key: str = field(repr=False)
    warmup_s: float = 1.0
    repeats: int = 3
    seed: int = 1
    slo_ms: float = 1000.0
    timeout_s: float = 30.0
    sized: bool = False
    """Whether a trace's answer lengths are told to the backend, which must be the scripted one."""
    namespace: str = field(default_factory=lambda: f"bench-{secrets.token_hex(6)}")
    """What is kept for a bench is kept apart from all else, and from what an earlier bench asked."""
    apart: bool = False
    """Whether each repeat begins with nothing kept, in a namespace of its own."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole bench, as `--json` writes it."""

    schema: int
    command: str
    simulated: list[str]
    """What of it was not real."""
    machine: dict[str, Any]
    method: dict[str, Any]
    figures: Figures
    rss_mb: dict[str, float] | None
    """Memory of the proxy's process at the start, at the end, and the most of what was seen after each repeat."""


async def measure(bench: Bench, told: Callable[[str, int], None] = lambda what, done: None) -> Report:
    """Run a bench. `told` is called with what goes on and how many requests were just answered.

    Raises ConfigError where the target does not answer at all.
    """
    load, runs, cpu_s, rss = bench.load, list[Run](), list[float | None](), list[float]()
    connections = Connections(bench.target, timeout_s=bench.timeout_s)
    try:
        await fill(bench, connections)
        if bench.warmup_s and load.arrivals is None:
            warm = Driver(bench, connections, bench.seed - 1)
            await warm.run(bench.warmup_s, lambda done: told("warm-up", 0))
        began = before = await bench.watch.look()
        rss += [before.rss_mb] if before.rss_mb is not None else []
        for number in range(bench.repeats):
            name = f"repeat {number + 1} of {bench.repeats}"
            runs.append(
                await Driver(bench, connections, bench.seed + number).run(
                    load.seconds,
                    lambda done, name=name: told(name, done),  # type: ignore[misc] # mypy sees two parameters
                )
            )
            after = await bench.watch.look()
            same = before.cpu_s is not None and after.cpu_s is not None
            cpu_s.append(after.cpu_s - before.cpu_s if same else None)  # type: ignore[operator] # `same` says so
            rss += [after.rss_mb] if after.rss_mb is not None else []
            before = after
    finally:
        connections.close()
    return Report(
        schema=SCHEMA,
        command="",
        simulated=[],
        machine=machine(),
        method=method(bench),
        figures=figures(runs, cpu_s, bench.slo_ms / 1000, between(began, before)),
        rss_mb={"start": round(rss[0], 1), "end": round(rss[-1], 1), "most": round(max(rss), 1)} if rss else None,
    )


async def fill(bench: Bench, connections: Connections) -> None:
    """Ask what is to be kept, before anything is measured. Raises ConfigError where nothing answers."""
    driver = Driver(bench, connections, bench.seed - 1)
    asks = driver.asking.first() or [driver.asking.next()]
    rest = iter(asks)
    run = await closed(
        driver.send, lambda: next(rest), connections=min(_FILLERS, len(asks)), seconds=600, most=len(asks)
    )
    failed = [sample.answer for sample in run.samples if sample.answer.error]
    if len(failed) == len(run.samples):
        raise ConfigError(
            f"{bench.target.host}:{bench.target.port} does not answer ({failed[0].error}); is a proxy running there?"
        )


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "python": platform.python_version(),
        "cacheproxy": __version__,
    }


def method(bench: Bench) -> dict[str, Any]:
    """Return how it was measured."""
    load = bench.load
    loop = "closed" if load.connections else "open"
    told: dict[str, Any] = {"loop": loop, "seconds": load.seconds, "warmup_s": bench.warmup_s, "repeats": bench.repeats}
    told |= {"seed": bench.seed, "slo_ms": bench.slo_ms, "timeout_s": bench.timeout_s, "most_requests": load.most}
    if load.connections:
        return {**told, "connections": load.connections}
    arrivals = "trace" if load.arrivals is not None else "bursty" if load.bursts else "poisson"
    return {**told, "arrivals": arrivals, "rate_per_s": load.rate or None, "latency_from": "the time a request was due"}


class Driver:
    """One run: who asks, and how requests are sent."""

    def __init__(self, bench: Bench, connections: Connections, seed: int) -> None:
        self._bench = bench
        self._connections = connections
        self._seed = seed
        self._more = {"x-cacheproxy-namespace": bench.namespace + (f"-{seed}" if bench.apart else "")}
        self.asking = bench.asking(seed)

    async def run(self, seconds: float, told: Callable[[int], None]) -> Run:
        """Load the target for some seconds; `told` is called with the number of requests just answered."""
        load = self._bench.load
        if load.connections:
            return await closed(
                self.send, self.asking.next, connections=load.connections, seconds=seconds, most=load.most, told=told
            )
        return await opened(
            self.send,
            lambda arrival: self.asking.next(arrival.key),
            load.due(seconds, self._seed),
            most_waiting=_MOST_WAITING,
            told=told,
        )

    async def send(self, ask: Ask, arrival: Arrival | None) -> Answer:
        """Send one request and return what came of it."""
        bench = self._bench
        request = encode(
            ask,
            host=bench.target.host_header,
            path=bench.target.path,
            key=bench.key,
            tokens_out=arrival.tokens_out if arrival is not None and bench.sized else 0,
            more=self._more,
        )
        return await self._connections.ask(request)
