"""When requests come: Poisson arrivals, bursty ones, and those of a trace. All of it is the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_CALM, _BUSY = 0.5, 3.0
"""Rates of the two states of bursty arrivals, against the mean: a fifth of the time busy, so that the mean is 1."""
_CALM_S, _BUSY_S = 8.0, 2.0
"""Mean stay in each state, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request that is due."""

    at_s: float
    """Seconds after the start."""
    tokens_in: int = 0
    """Tokens of its prompt; 0 where nothing is known."""
    tokens_out: int = 0
    key: str = ""
    """What two requests share that ask the same thing; "" where nothing is known."""


def poisson(rate: float, seconds: float, seed: int) -> Iterator[Arrival]:
    """Yield arrivals at `rate` a second, independent of each other, for `seconds`."""
    source, at_s = random.Random(seed), 0.0
    while (at_s := at_s + source.expovariate(rate)) < seconds:
        yield Arrival(at_s=at_s)


def bursty(rate: float, seconds: float, seed: int) -> Iterator[Arrival]:
    """Yield simulated arrivals that come in bursts: `rate` a second in the long run, six times as many at some times.

    A Poisson process whose rate changes between two states, each kept for an exponential time (MMPP-2).
    """
    source, at_s, busy = random.Random(seed), 0.0, False
    ends_s = source.expovariate(1 / _CALM_S)
    while at_s < seconds:
        step_s = source.expovariate(rate * (_BUSY if busy else _CALM))
        if at_s + step_s >= ends_s:
            at_s, busy = ends_s, not busy
            ends_s = at_s + source.expovariate(1 / (_BUSY_S if busy else _CALM_S))
            continue
        at_s += step_s
        if at_s < seconds:
            yield Arrival(at_s=at_s)


def shaped(load: Sequence[float], rate: float, seconds: float, seed: int) -> Iterator[Arrival]:
    """Yield arrivals whose rate follows `load`, stretched or squeezed to `seconds`, at `rate` a second on average."""
    source, at_s = random.Random(seed), 0.0
    most, mean = max(load), sum(load) / len(load)
    while (at_s := at_s + source.expovariate(rate * most / mean)) < seconds:
        if source.random() * most < load[int(at_s / seconds * len(load))]:
            yield Arrival(at_s=at_s)


def fitted(arrivals: Iterable[Arrival], *, speed: float, seconds: float, most: int) -> Iterator[Arrival]:
    """Yield a trace from its first arrival on, `speed` times as fast, up to `seconds` and `most` arrivals."""
    first_s = None
    for number, arrival in enumerate(arrivals):
        first_s = arrival.at_s if first_s is None else first_s
        at_s = (arrival.at_s - first_s) / speed
        if number >= most or at_s >= seconds:
            return
        yield replace(arrival, at_s=at_s)
