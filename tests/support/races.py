"""Races of fills, serves and purges between replicas' stores in processes of their own, and what the checker says."""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tests.support.histories import NEVER_S, Event, Kept, Purged, Served, Violation, divergent, read_history, violations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).parents[2]
_SOON_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Races:
    """What came of them.

    A race is the purge of one key that was kept since its last purge, while every replica asks for it without a pause.
    """

    races: int
    acknowledged: int
    """Those where every replica said that it had applied the purge; the others bind when their leases have ended."""
    soon_after: int
    """Hits that began within 50 ms after a purge of their key was binding: each could have shown what was purged."""
    serves: int
    fills: int
    refused: int
    """Calls that were refused at once: no lease, or no engine."""
    acknowledged_ms: tuple[float, ...]
    violations: tuple[Violation, ...]
    divergent: tuple[str, ...]


async def race(
    url: str,
    directory: Path,
    *,
    replicas: int,
    keys: int,
    seconds: float,
    quiet_s: float = 1.0,
    trouble: Callable[[], Awaitable[None]] | None = None,
) -> Races:
    """Race, wait until all is quiet, and compare what replicas hold then. `trouble` is made while they race."""
    outs = [directory / f"history-{number}" for number in range(replicas)]
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.replica_child", url, str(directory), str(number)),
            *(str(keys), str(seconds), str(out)),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for number, out in enumerate(outs)
    ]
    try:
        for child in children:
            assert await _line(child, 30) == "ready"
        for child in children:
            _go(child)
        if trouble is not None:
            await trouble()
        refused = sum([int(await _line(child, seconds + 60)) for child in children])
        await asyncio.sleep(quiet_s)
        for child in children:
            _go(child)
        for child in children:
            assert await asyncio.wait_for(child.wait(), 60) == 0
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
                await child.wait()
    history = [event for out in outs for event in read_history(out)]
    views = {out.name: msgspec.json.decode(out.with_suffix(".view").read_bytes()) for out in outs}
    return _summary(history, views, refused)


def _summary(history: list[Event], views: dict[str, dict[str, int | None]], refused: int) -> Races:
    purges = [event for event in history if isinstance(event, Purged)]
    binding: dict[str, list[float]] = defaultdict(list)
    kept: dict[str, list[float]] = defaultdict(list)
    for event in history:
        if isinstance(event, Purged):
            binding[event.key].append(event.binding_s)
        elif isinstance(event, Kept):
            kept[event.key].append(event.at_s)
    for moments in (*binding.values(), *kept.values()):
        moments.sort()
    before: dict[str, float] = defaultdict(float)
    raced: list[Purged] = []
    for purge in sorted(purges, key=lambda one: one.called_s):
        since = bisect_right(kept[purge.key], before[purge.key])
        if since < bisect_right(kept[purge.key], purge.called_s):
            raced.append(purge)
        before[purge.key] = purge.called_s
    soon = serves = 0
    for event in history:
        if isinstance(event, Served):
            serves += 1
            moments = binding[event.key]
            place = bisect_right(moments, event.began_s)
            soon += place > 0 and event.began_s - moments[place - 1] < _SOON_S
    bound = [purge for purge in raced if purge.binding_s < NEVER_S]
    return Races(
        races=len(raced),
        acknowledged=len(bound),
        soon_after=soon,
        serves=serves,
        fills=sum(isinstance(event, Kept) for event in history),
        refused=refused,
        acknowledged_ms=tuple(sorted(1000 * (purge.binding_s - purge.called_s) for purge in bound)),
        violations=tuple(violations(history)),
        divergent=tuple(divergent(views)),
    )


def _go(child: asyncio.subprocess.Process) -> None:
    assert child.stdin is not None
    child.stdin.write(b"go\n")


async def _line(child: asyncio.subprocess.Process, within_s: float) -> str:
    assert child.stdout is not None
    async with asyncio.timeout(within_s):
        async for line in child.stdout:
            if line.startswith(b"> "):
                return line[2:].decode().strip()
    raise AssertionError("a replica ended early")
