"""Driving: requests sent one after the other by each of N connections (closed), or when they are due (open).

Open: a request is sent at its time whether earlier ones are answered or not, and its latency counts from that time, not
from when the generator got round to it. So a stall of the proxy is seen by all who would have waited in it: nothing is
omitted in coordination with what is measured (Tene, "How NOT to Measure Latency", 2013). Closed: a connection's next
request is due when its last answer is whole, so it measures capacity; its latencies are those of N patient callers.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from cacheproxy.bench.arrivals import Arrival
    from cacheproxy.bench.asking import Ask
    from cacheproxy.bench.client import Answer

_SPIN_S = 0.0005
"""A sleep shorter than this is not worth it: timers are no more exact."""
_TURNED_AWAY = frozenset({429, 503})
_PAUSE_S = 0.02
"""Before a caller of the closed loop who was turned away asks again; else it would ask without end."""
_TURN = 32
"""Requests that are started in one go by a generator that is behind, before it reads answers."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and what came of it; times in seconds from the start of the run."""

    ask: Ask
    due_s: float
    sent_s: float
    first_s: float
    done_s: float
    answer: Answer


@dataclass(slots=True)
class Run:
    """Everything that one run saw."""

    samples: list[Sample] = field(default_factory=list)
    elapsed_s: float = 0.0
    dropped: int = 0
    """Requests that were due and never sent: too many were waiting already (`most_waiting`)."""


async def closed(
    send: Callable[[Ask, Arrival | None], Awaitable[Answer]],
    draw: Callable[[], Ask],
    *,
    connections: int,
    seconds: float,
    most: int,
    told: Callable[[int], None] = lambda _: None,
) -> Run:
    """Let each of `connections` callers ask again once it is answered, for `seconds` or `most` requests in all."""
    run, began = Run(), time.perf_counter()
    numbers = itertools.count()

    async def caller() -> None:
        while (sent := time.perf_counter()) - began < seconds and next(numbers) < most:
            ask = draw()
            answer = await send(ask, None)
            _note(run, ask, began, sent, sent, answer)
            told(1)
            if answer.error or answer.status in _TURNED_AWAY:
                await asyncio.sleep(_PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(caller())
    run.elapsed_s = time.perf_counter() - began
    return run


async def opened(
    send: Callable[[Ask, Arrival | None], Awaitable[Answer]],
    draw: Callable[[Arrival], Ask],
    arrivals: Iterable[Arrival],
    *,
    most_waiting: int,
    told: Callable[[int], None] = lambda _: None,
) -> Run:
    """Send each request when it is due; beyond `most_waiting` unanswered ones, it is dropped and counted."""
    run, began = Run(), time.perf_counter()
    waiting = 0

    async def one(arrival: Arrival, ask: Ask) -> None:
        nonlocal waiting
        try:
            sent = time.perf_counter()
            answer = await send(ask, arrival)
            _note(run, ask, began, began + arrival.at_s, sent, answer)
            told(1)
        finally:
            waiting -= 1

    async with asyncio.TaskGroup() as group:
        for number, arrival in enumerate(arrivals):
            early_s = began + arrival.at_s - time.perf_counter()
            if early_s > _SPIN_S:
                await asyncio.sleep(early_s)
            elif number % _TURN == 0:
                await asyncio.sleep(0)  # answers must be read even where the generator is behind
            if waiting >= most_waiting:
                run.dropped += 1
                told(1)
                continue
            waiting += 1
            group.create_task(one(arrival, draw(arrival)))
    run.elapsed_s = time.perf_counter() - began
    return run


def _note(run: Run, ask: Ask, began: float, due: float, sent: float, answer: Answer) -> None:
    first = answer.first_s or answer.done_s
    run.samples.append(Sample(ask, due - began, sent - began, first - began, answer.done_s - began, answer))
