"""Observed: what answers of each arm took, in time and money, and what the next one may take. Pure.

Both are taken as log-normal, and as correlated, since both grow with the answer. What was seen fades with time, so that
a queue which builds up or goes is followed within minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec

from cacheproxy.augment.arms import Arm
from cacheproxy.errors import ConfigError

VERSION = 1
LEAST_S, LEAST_USD = 1e-4, 1e-9
"""Less counts as this much."""
_MOST = 1e9
_HALF_S = 300.0
_FEWEST = 0.5
"""Faded runs below which nothing is said of an arm."""
_SPREAD = 0.5
_SPREAD_RUNS = 2.0
"""A standard deviation of 0.5 in logarithms (a factor of 1.6) is expected, as if two runs had told so."""
_Finite = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
_Positive = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of the next answer of an arm: natural logarithms of seconds and US dollars, means and deviations."""

    runs: float
    log_s: float
    log_s_spread: float
    log_usd: float
    log_usd_spread: float
    correlation: float


class _Sums(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Of logarithms x (seconds) and y (US dollars), faded: how many, their means, and squared distances from these."""

    runs: _Positive = 0.0
    x: _Finite = 0.0
    y: _Finite = 0.0
    xx: _Positive = 0.0
    yy: _Positive = 0.0
    xy: _Finite = 0.0
    at_s: _Finite = 0.0


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int
    categories: dict[str, dict[Arm, _Sums]]


class Observed:
    """What answers took, by category and arm. Not for several threads at once."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[Arm, _Sums]] = {}

    def note(self, category: str, arm: Arm, latency_s: float, usd: float, now_s: float) -> None:
        """Take what an answer took, from the question to its last byte. What is no number counts as nothing."""
        if not (math.isfinite(latency_s) and math.isfinite(usd)):
            return
        sums = self._sums.setdefault(category, {}).setdefault(arm, _Sums(at_s=now_s))
        kept = _kept(sums, now_s)
        for name in ("runs", "xx", "yy", "xy"):
            setattr(sums, name, getattr(sums, name) * kept)
        sums.at_s = max(sums.at_s, now_s)
        sums.runs += 1.0
        x, y = math.log(min(_MOST, max(LEAST_S, latency_s))), math.log(min(_MOST, max(LEAST_USD, usd)))
        # Welford (1962), with weights that fade.
        off_x, off_y = x - sums.x, y - sums.y
        sums.x += off_x / sums.runs
        sums.y += off_y / sums.runs
        sums.xx += off_x * (x - sums.x)
        sums.yy += off_y * (y - sums.y)
        sums.xy += off_x * (y - sums.y)

    def estimate(self, category: str, arm: Arm, now_s: float) -> Estimate | None:
        """Return what the next answer may take; None where too little was seen of late."""
        sums = self._sums.get(category, {}).get(arm)
        if sums is None:
            return None
        kept = _kept(sums, now_s)
        runs = sums.runs * kept
        if runs < _FEWEST:
            return None
        spread_x, spread_y = _spread(sums.xx * kept, runs), _spread(sums.yy * kept, runs)
        scale = math.sqrt(sums.xx * sums.yy)
        return Estimate(
            runs=runs,
            log_s=sums.x,
            log_s_spread=spread_x,
            log_usd=sums.y,
            log_usd_spread=spread_y,
            correlation=min(0.99, max(-0.99, sums.xy / scale)) if scale > 0 else 0.0,
        )

    def estimates(self, category: str, now_s: float) -> dict[Arm, Estimate]:
        """Return those of every arm that something is known of."""
        found = {arm: self.estimate(category, arm, now_s) for arm in Arm}
        return {arm: one for arm, one in found.items() if one is not None}

    def to_bytes(self) -> bytes:
        """Return what was seen."""
        return msgspec.msgpack.encode(_Written(version=VERSION, categories=self._sums))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Observed:
        """Return what was written. Raises ConfigError for another version, and for damage."""
        try:
            written = msgspec.msgpack.decode(raw, type=_Written)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise ConfigError("what arms took cannot be read; it is learnt afresh") from exc
        if written.version != VERSION:
            raise ConfigError(f"what arms took is of version {written.version}, not {VERSION}; it is learnt afresh")
        observed = cls()
        observed._sums = written.categories
        return observed


def _kept(sums: _Sums, now_s: float) -> float:
    return math.exp2(-max(0.0, now_s - sums.at_s) / _HALF_S)


def _spread(squares: float, runs: float) -> float:
    """Return the deviation of the next one: that of those before, and not knowing their mean."""
    variance = (squares + _SPREAD_RUNS * _SPREAD**2) / (runs + _SPREAD_RUNS)
    return math.sqrt(variance * (1.0 + 1.0 / runs))
