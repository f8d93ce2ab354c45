"""Adapt: how a loaded backend lowers thresholds and stretches lifetimes, within the bounds of a category. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy import settings

_MARK = 0.05
"""How far below the load in force the recent ones must all stay before it falls: what is less is noise."""
_MOST = 2.0
"""Loads above it count as this much, so that one extreme moment is forgotten as soon as another."""


def effective_threshold(threshold: float, floor: float | None, drop: float, load: float) -> float:
    """Return the threshold at a load of 0 to 1: at most `drop` lower, never below `floor`; without one, unchanged."""
    if floor is None:
        return threshold
    return min(threshold, max(floor, threshold - drop * load))


def effective_probability(probability: float, drop: float, load: float) -> float:
    """Return the probability to be reached at a load of 0 to 1: at most `drop` lower, never below an even chance."""
    return min(probability, max(0.5, probability - drop * load))


def effective_ttl(ttl_s: float, stretch: float, load: float) -> float:
    """Return the lifetime at a load of 0 to 1: at full load longer by `stretch` times itself."""
    return ttl_s * (1.0 + stretch * load)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a backend: requests that it answers or that wait for it, how many it takes, and its latency."""

    in_flight: int
    limit: int
    p95_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How loaded a backend counts as.

    `load` is 1 where it is at its limit or its latency at what is wanted; `average` follows the samples, and `held` is
    the load in force: that average at once when it rises, and only later when it falls. `lam` is what policy adapts by.
    """

    lam: float
    held: float
    average: float
    load: float
    sample: Sample


class LoadWatch:
    """The load of each backend from regular samples, with hysteresis. Raises ConfigError for marks in the wrong order.

    The load in force never is below the average, and falls when the averages of the last `hold_s` all were below it by
    a mark, to the highest of them: so between a rise and the next fall there are at least `hold_s`.
    """

    def __init__(self, config: settings.Load) -> None:
        if config.low >= config.high:
            raise ConfigError(f"load.low must be below load.high, got {config.low:g} and {config.high:g}")
        self._config = config
        self._levels: dict[str, _Level] = {}
        self._readings: dict[str, Reading] = {}

    def observe(self, name: str, sample: Sample, now_s: float) -> Reading:
        """Take a sample of a backend at a moment that never goes backwards, and return how loaded it counts as."""
        config = self._config
        level = self._levels.setdefault(name, _Level())
        load = max(_ratio(sample.in_flight, sample.limit), _ratio(sample.p95_s * 1000, config.slo_ms))
        level.take(load, now_s, config)
        reading = Reading(
            lam=_clip((level.held - config.low) / (config.high - config.low)),
            held=level.held,
            average=level.average,
            load=load,
            sample=sample,
        )
        self._readings[name] = reading
        return reading

    def lam(self, name: str) -> float:
        """Return how far policy adapts to a backend, 0 to 1; 0 for one that was never seen."""
        reading = self._readings.get(name)
        return reading.lam if reading is not None else 0.0

    def least(self, names: Iterable[str]) -> float:
        """Return that of the least loaded of some backends: as long as one has room, nothing needs to give way."""
        return min(map(self.lam, names), default=0.0)

    @property
    def readings(self) -> dict[str, Reading]:
        """The last reading of every backend."""
        return dict(self._readings)


class _Level:
    """An average, and the level that it holds up."""

    __slots__ = ("_peaks", "average", "held")

    def __init__(self) -> None:
        self.average = 0.0
        self.held = 0.0
        self._peaks: deque[tuple[float, float]] = deque()  # (when, average) of the last `hold_s`, highest first

    def take(self, load: float, now_s: float, config: settings.Load) -> None:
        self.average += config.alpha * (load - self.average)
        peaks = self._peaks
        while peaks and peaks[-1][1] <= self.average:
            peaks.pop()
        peaks.append((now_s, self.average))
        while now_s - peaks[0][0] > config.hold_s:
            peaks.popleft()
        highest = peaks[0][1]
        if highest > self.held or highest < max(self.held - _MARK, min(self.held, config.low)):
            self.held = highest


def _ratio(part: float, whole: float) -> float:
    """Return part / whole; nothing that is no number, below 0 or endless makes a load."""
    load = part / whole if whole > 0 else 0.0
    return min(load, _MOST) if math.isfinite(load) and load > 0 else 0.0


def _clip(share: float) -> float:
    return min(1.0, max(0.0, share))
