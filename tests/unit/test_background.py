"""Cores that two kinds of work share: what goes first takes them, and always leaves one."""

from __future__ import annotations

import pytest

from cacheproxy.background import Cores, usable_cores
from cacheproxy.opening import cores_of


def test_nobody_has_to_count_cores_of_which_none_is_claimed() -> None:
    cores = Cores(4)
    assert cores.left is None
    cores.claim(1)
    cores.claim(0)
    assert cores.left is None


def test_what_is_claimed_is_not_left_and_one_always_is() -> None:
    cores, left = Cores(4), []
    for claimed in (1, 3, 4, 99):
        cores.claim(claimed)
        left.append(cores.left)
    assert left == [3, 1, 1, 1]


def test_whoever_waits_is_told_when_fewer_are_claimed_and_only_then() -> None:
    cores, told = Cores(4), list[int | None]()
    cores.when_fewer(lambda: told.append(cores.left))
    for claimed in (2, 2, 3, 1, 1, 0):
        cores.claim(claimed)
    assert told == [3, None]


def test_a_process_may_use_a_core_at_least() -> None:
    assert usable_cores() >= 1


@pytest.mark.parametrize(("device", "shared"), [("cpu", True), ("cuda", False), ("mps", False)])
def test_an_encoder_on_a_device_of_its_own_shares_no_cores(device: str, *, shared: bool) -> None:
    assert (cores_of(device) is not None) is shared
