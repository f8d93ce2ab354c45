"""How long a caller may keep us waiting: late is late by every measure, and no wait is blamed on the wrong side."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.http.patience import LINGER_S, Awaited, Patience
from cacheproxy.settings import Server

LIMITS = Server(header_timeout_s=10, body_timeout_s=30, min_body_bytes_per_s=500, write_timeout_s=60, keep_alive_s=75)
MOST_S = {
    Awaited.HEAD: 10.0,
    Awaited.LEFTOVER: 10.0,
    Awaited.READER: 60.0,
    Awaited.END: LINGER_S,
    Awaited.REQUEST: 75.0,
}


def ended_at(awaited: Awaited, received: dict[int, int] | None = None, *, until_s: int = 200) -> int | None:
    """Sweep once a second, with bytes coming at some seconds, and return when patience ends."""
    patience, total = Patience(LIMITS), 0
    for now_s in range(until_s):
        total += (received or {}).get(now_s, 0)
        if patience.ends(awaited, turn=1, received=total, now_s=now_s):
            return now_s
    return None


@pytest.mark.parametrize(("awaited", "most_s"), MOST_S.items())
def test_a_wait_ends_at_its_limit_and_not_before(awaited: Awaited, most_s: float) -> None:
    trickle = dict.fromkeys(range(200), 100_000)
    assert ended_at(awaited) == ended_at(awaited, trickle) == most_s + 1


def test_nothing_awaited_never_ends() -> None:
    assert ended_at(Awaited.NOTHING) is None


@pytest.mark.parametrize("awaited", [one for one in Awaited if one is not Awaited.NOTHING])
def test_another_turn_or_another_wait_starts_anew(awaited: Awaited) -> None:
    patience = Patience(LIMITS)
    assert not any(patience.ends(awaited, turn=now_s // 2, received=0, now_s=now_s) for now_s in range(300))
    for now_s in range(0, 300, 2):
        assert not patience.ends(awaited, turn=1, received=0, now_s=now_s)
        assert not patience.ends(Awaited.NOTHING, turn=1, received=0, now_s=now_s + 1)


BODIES: dict[str, tuple[dict[int, int], int | None]] = {
    "silent": ({}, 30),
    "one byte a second": (dict.fromkeys(range(200), 1), 30),
    "just too slow": (dict.fromkeys(range(200), 499), 30),
    "just fast enough": (dict.fromkeys(range(200), 500), None),
    "a burst every 29 s": (dict.fromkeys(range(0, 200, 29), 100_000), None),
    "a burst, then silence": ({1: 10_000_000}, 32),
    "a burst buys no trickle": ({1: 10_000_000, **dict.fromkeys(range(2, 200), 1)}, 60),
    "fast, then one byte a second": (dict.fromkeys(range(100), 10_000) | dict.fromkeys(range(100, 200), 1), 150),
}


@pytest.mark.parametrize(("received", "ends_s"), BODIES.values(), ids=BODIES)
def test_a_body_must_come_steadily(received: dict[int, int], ends_s: int | None) -> None:
    ended = ended_at(Awaited.BODY, received)
    assert ended == ends_s or (ended is not None and ends_s is not None and abs(ended - ends_s) <= 1)


@given(st.dictionaries(st.integers(0, 199), st.integers(1, 20_000)))
def test_a_body_is_never_left_waiting_for_longer_than_two_spans(received: dict[int, int]) -> None:
    times = sorted({0, *received, 200})
    slow_span = any(sum(received.get(s, 0) for s in range(at, at + 62)) < 30 * 500 for at in range(138))
    silent = any(later - earlier > 32 for earlier, later in pairwise(times))
    if silent or slow_span:
        assert ended_at(Awaited.BODY, received) is not None
