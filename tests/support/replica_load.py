"""Callers that go on asking several replicas, whatever happens to the engine, and what they got."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.rawhttp import Truncated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests.support.replicas import Replica


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it began, how long it took to the last byte, and what came of it."""

    began_s: float
    took_ms: float
    outcome: str
    """`hit`, `miss` or `bypass`; else the status and what it said, or how the connection failed."""


@dataclass(slots=True)
class Load:
    """What the callers got so far."""

    asked: list[Asked] = field(default_factory=list)

    def since(self, began_s: float, until_s: float = float("inf")) -> Load:
        """Return what was asked in this time."""
        return Load([one for one in self.asked if began_s <= one.began_s < until_s])

    def of(self, outcome: str) -> Load:
        """Return what came of one kind."""
        return Load([one for one in self.asked if one.outcome == outcome])

    @property
    def outcomes(self) -> Counter[str]:
        """How often each came."""
        return Counter(one.outcome for one in self.asked)

    @property
    def failures(self) -> Counter[str]:
        """What was not an answer."""
        return Counter({name: count for name, count in self.outcomes.items() if name not in {"hit", "miss", "bypass"}})

    def quantile_ms(self, share: float) -> float:
        """Return the time within which this share was answered."""
        took = sorted(one.took_ms for one in self.asked)
        return took[min(len(took) - 1, int(share * len(took)))] if took else 0.0


@asynccontextmanager
async def asking(
    replicas: Sequence[Replica], question: Callable[[int], str], *, callers: int = 4, pause_s: float = 0.005
) -> AsyncIterator[Load]:
    """Ask until the block ends: each caller goes from replica to replica, with a pause after each answer."""
    load = Load()
    done = asyncio.Event()
    number = 0

    async def call(lane: int) -> None:
        nonlocal number
        turn = lane
        while not done.is_set():
            number += 1
            turn += 1
            began_s = time.monotonic()
            try:
                told = await replicas[turn % len(replicas)].ask(question(number))
                outcome = (told.outcome or "none") if told.status == 200 else f"{told.status} {told.body[:200]!r}"
            except (OSError, Truncated, TimeoutError) as exc:
                outcome = type(exc).__name__
            load.asked.append(Asked(began_s, (time.monotonic() - began_s) * 1000, outcome))
            await asyncio.sleep(pause_s)

    lanes = [asyncio.create_task(call(lane)) for lane in range(callers)]
    try:
        yield load
    finally:
        done.set()
        await asyncio.gather(*lanes)
