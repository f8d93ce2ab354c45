"""Clock jumps (reliability row 61)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy import settings
from cacheproxy.clock import SystemClock
from cacheproxy.store.future import SKEW_S
from cacheproxy.store.memory import MemoryStore
from cacheproxy.store.sqlite import SqliteStore
from tests.support.entries import NOW_S, entry_id, make_entry

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86_400.0


class Machine:
    """A machine whose wall clock can be set."""

    def __init__(self) -> None:
        self.wall_s = NOW_S
        self.monotonic_s = 77.0
        self.clock = SystemClock(lambda: self.wall_s, lambda: self.monotonic_s)

    def live(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds

    def set(self, seconds: float) -> None:
        self.wall_s += seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_an_unset_clock_is_the_machines() -> None:
    clock = SystemClock()
    assert abs(clock.now() - time.time()) < 1
    assert abs(clock.monotonic() - time.monotonic()) < 1


@pytest.mark.parametrize("jump_s", [DAY_S, 3600.0, 1.0, -1.0, -3600.0, -DAY_S])
def test_a_jump_forward_is_followed_and_one_back_is_not(machine: Machine, jump_s: float) -> None:
    before = machine.clock.now()
    machine.live(10)
    machine.set(jump_s)
    assert machine.clock.now() == pytest.approx(before + 10 + max(0.0, jump_s))


def test_steps_to_and_fro_do_not_add_up(machine: Machine) -> None:
    start = machine.clock.now()
    for _ in range(1000):
        for jump_s in (1.0, -1.0, -1.0, 1.0):
            machine.live(0.25)
            machine.set(jump_s)
            machine.clock.now()
    assert start + 1000 <= machine.clock.now() <= start + 1001


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(-1e6, 1e6)), max_size=30))
def test_time_never_runs_back_and_passes_no_slower_than_it_does(steps: list[tuple[float, float]]) -> None:
    machine = Machine()
    before = machine.clock.now()
    for lived_s, jump_s in steps:
        machine.live(lived_s)
        machine.set(jump_s)
        assert machine.clock.now() >= before + lived_s - 1e-3
        before = machine.clock.now()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("jumps", [(-DAY_S,), (DAY_S, -DAY_S), (1.0, -1.0) * 5, (-1.0,) * 10])
async def test_a_clock_set_back_never_revives_an_entry(
    machine: Machine, tmp_path: Path, kind: str, jumps: tuple[float, ...]
) -> None:
    limits = settings.Store()
    store = (
        MemoryStore(limits, machine.clock)
        if kind == "memory"
        else SqliteStore(tmp_path / "e.db", limits, machine.clock)
    )
    async with store:
        entry = make_entry("paris", created_s=machine.clock.now(), ttl_s=100)
        await store.put(entry, store.fence)
        for jump_s in jumps:
            machine.live(100 / len(jumps))
            machine.set(jump_s)
            assert machine.clock.now() >= entry.created_s  # its age is never negative
        assert await store.get(entry.id) is None
        machine.set(-DAY_S)
        assert await store.get(entry.id) is None


async def test_entries_of_the_future_are_dropped_at_the_start_and_uses_clamped(
    machine: Machine, tmp_path: Path
) -> None:
    file, limits = tmp_path / "e.db", settings.Store(max_entries=2)
    async with SqliteStore(file, limits, machine.clock) as store:
        for key in ("old", "used"):
            await store.put(make_entry(key, created_s=machine.clock.now(), ttl_s=10 * DAY_S), store.fence)
        machine.live(DAY_S)
        await store.put(make_entry("future", created_s=machine.clock.now()), store.fence)
        assert await store.get(entry_id("used"))
    machine.set(-DAY_S + SKEW_S)
    restarted = SystemClock(lambda: machine.wall_s, lambda: machine.monotonic_s)
    async with SqliteStore(file, limits, restarted) as store:
        assert await store.get(entry_id("future")) is None
        assert (len(store), store.quarantined, store.corrupt_records) == (2, 0, 0)
        machine.live(1)
        assert await store.get(entry_id("old"))
        machine.live(1)
        await store.put(make_entry("new", created_s=restarted.now()), store.fence)
        assert await store.sweep() == [entry_id("used")]


async def test_entries_a_little_ahead_stay(machine: Machine, tmp_path: Path) -> None:
    file, limits = tmp_path / "e.db", settings.Store()
    async with SqliteStore(file, limits, machine.clock) as store:
        await store.put(make_entry("a", created_s=machine.clock.now()), store.fence)
    machine.set(-SKEW_S)
    async with SqliteStore(file, limits, SystemClock(lambda: machine.wall_s, lambda: machine.monotonic_s)) as store:
        assert await store.get(entry_id("a"))
