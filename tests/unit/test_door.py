"""The door counts what comes and goes, and what does not fit is refused at once."""

from __future__ import annotations

import resource
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import Overloaded
from cacheproxy.http.door import Door, room_for
from cacheproxy.settings import Server

if TYPE_CHECKING:
    from collections.abc import Iterator


class Caller:
    """A connection that misses a deadline when told to."""

    def __init__(self, missed: str | None = None) -> None:
        self.missed = missed
        self.swept_s: list[float] = []

    def sweep(self, now_s: float) -> str | None:
        self.swept_s.append(now_s)
        return self.missed


def test_connections_are_taken_up_to_the_cap_and_again_after_one_left() -> None:
    door, callers = Door(Server(), 3), [Caller() for _ in range(4)]
    assert [door.open(caller, "a") for caller in callers] == [True, True, True, False]
    door.closed(callers[3], "a")
    assert len(door.connections) == 3
    door.closed(callers[0], "a")
    assert door.open(callers[3], "a")
    assert door.cut == {"max_connections": 1}


def test_one_address_cannot_take_the_others_places() -> None:
    door, callers = Door(Server(max_connections_per_client=2), 100), [Caller() for _ in range(3)]
    assert [door.open(caller, "a") for caller in callers] == [True, True, False]
    assert door.open(Caller(), "b")
    door.closed(callers[2], "a")
    assert not door.open(Caller(), "a")
    door.closed(callers[0], "a")
    assert door.open(Caller(), "a")
    assert door.cut == {"max_connections_per_client": 2}


def test_permits_and_memory_are_given_back_whole() -> None:
    door = Door(Server(max_requests=2, max_held_body_bytes=100), 10)
    door.enter()
    door.enter()
    for attempt in (door.enter, door.knock):
        with pytest.raises(Overloaded) as refused:
            attempt()
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1.0)
    door.hold(60)
    with pytest.raises(Overloaded):
        door.hold(41)
    door.hold(40)
    door.leave(entered=True, held_bytes=100)
    door.leave(entered=True, held_bytes=0)
    door.leave(entered=False, held_bytes=0)
    assert (door.requests, door.held_bytes) == (0, 0)


def test_a_sweep_comes_once_a_second_or_in_time_for_the_shortest_deadline() -> None:
    for limits, pause_s in ((Server(), 1.0), (Server(header_timeout_s=0.4), 0.1)):
        door, caller = Door(limits, 10), Caller()
        door.open(caller, "a")
        for tick in range(400):
            door.sweep(tick / 100)
        assert len(caller.swept_s) == pytest.approx(4 / pause_s, abs=4)


def test_time_in_which_the_process_stood_still_is_no_callers() -> None:
    door, caller = Door(Server(), 10), Caller()
    door.open(caller, "a")
    for now_s in (100.0, 101.0, 102.0, 500.0, 501.0):
        door.sweep(now_s)
    assert [later - earlier for earlier, later in pairwise(caller.swept_s)] == [1.0, 1.0, 2.0, 1.0]


def test_missed_deadlines_are_counted_by_name() -> None:
    door = Door(Server(), 10)
    for missed in ("idle", "idle", None, "body_timeout"):
        door.open(Caller(missed), "a")
    door.sweep(0.0)
    assert door.cut == {"idle": 2, "body_timeout": 1}


@pytest.fixture
def limited() -> Iterator[tuple[int, int]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield soft, hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("connections", "to_backends"), [(10_000, 1024), (1, 1), (100, 10_000), (10**6, 10**6)])
def test_the_file_limit_leaves_room_for_backends_and_our_own_files(
    limited: tuple[int, int], connections: int, to_backends: int
) -> None:
    soft, hard = limited
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    room = room_for(connections, to_backends)
    assert 1 <= room <= connections
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == resource.RLIM_INFINITY or room + min(to_backends, room) + 64 <= soft
