"""The fair queue in front of a backend."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import UpstreamBusy
from cacheproxy.upstream.queue import FairQueue, Limits
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from cacheproxy.upstream.queue import Permit


def queue(running: int = 1, waiting: int = 100, wait_s: float = 60.0, clock: FakeClock | None = None) -> FairQueue:
    return FairQueue(Limits(running=running, waiting=waiting, wait_s=wait_s), clock or FakeClock())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Callers:
    """Callers who note the order in which they get in, and hold their permit until told."""

    def __init__(self, line: FairQueue) -> None:
        self.line = line
        self.order: list[str] = []
        self.held: list[Permit] = []

    async def come(self, tenant: str, times: int = 1) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._get_in(tenant)) for _ in range(times)]
        await settle()
        return tasks

    async def _get_in(self, tenant: str) -> None:
        permit = await self.line.acquire(tenant)
        self.order.append(tenant)
        self.held.append(permit)

    async def serve(self, times: int) -> None:
        for _ in range(times):
            self.held.pop(0).release()
            await settle()


async def test_permits_are_given_at_once_up_to_the_limit() -> None:
    callers = Callers(queue(running=3))
    await callers.come("a", 4)
    assert (callers.line.running, callers.line.waiting, len(callers.order)) == (3, 1, 3)


async def test_a_tenant_who_floods_delays_another_by_one_turn() -> None:
    callers = Callers(queue(waiting=400))
    flood = await callers.come("flood", 90)
    quiet = await callers.come("quiet", 2)
    await callers.serve(5)
    assert callers.order == ["flood", "flood", "quiet", "flood", "quiet", "flood"]
    await callers.serve(86)
    assert callers.order.count("flood") == 90
    await asyncio.gather(*flood, *quiet)


async def test_many_tenants_take_turns() -> None:
    callers = Callers(queue())
    for tenant in ("first", "a", "a", "a", "b", "b", "c"):
        await callers.come(tenant)
    await callers.serve(6)
    assert callers.order == ["first", "a", "b", "c", "a", "b", "a"]


async def test_within_a_tenant_first_come_is_first_served() -> None:
    line = queue()
    held = await line.acquire("a")
    order: list[int] = []

    async def caller(number: int) -> None:
        permit = await line.acquire("a")
        order.append(number)
        permit.release()

    tasks = []
    for number in range(20):
        tasks.append(asyncio.create_task(caller(number)))
        await asyncio.sleep(0)
    held.release()
    await asyncio.gather(*tasks)
    assert order == list(range(20))


async def test_a_caller_who_left_the_line_is_passed_over() -> None:
    callers = Callers(queue())
    await callers.come("a")
    [gone] = await callers.come("b")
    await callers.come("c")
    gone.cancel()
    callers.held[0].release()  # in the same turn of the loop as the cancellation
    await settle()
    assert callers.order == ["a", "c"]
    assert (callers.line.running, callers.line.waiting) == (1, 0)


async def test_a_caller_cancelled_in_the_moment_of_its_turn_hands_it_on() -> None:
    callers = Callers(queue())
    await callers.come("a")
    [unlucky] = await callers.come("b")
    await callers.come("c")
    callers.held[0].release()
    unlucky.cancel()
    await settle()
    assert callers.order == ["a", "c"]
    assert (callers.line.running, callers.line.waiting) == (1, 0)


async def test_a_full_line_sheds_at_once_and_says_when_to_come_back() -> None:
    clock = FakeClock()
    line = queue(running=1, waiting=8, clock=clock)
    held = await line.acquire("a")
    callers = Callers(line)
    waiting = []
    for tenant in "abcd":
        waiting += await callers.come(tenant, 2)
    for tenant in ("a", "new"):
        assert line.full(tenant)
        with pytest.raises(UpstreamBusy) as refusal:
            await line.acquire(tenant)
        assert refusal.value.retry_after_s == 9
    assert line.shed == 2
    clock.advance(1)
    held.release()
    await settle()
    await callers.serve(7)
    await asyncio.gather(*waiting)


async def test_one_tenant_fills_at_most_a_quarter_of_the_line() -> None:
    callers = Callers(queue(running=1, waiting=8))
    await callers.come("a", 3)
    assert callers.line.waiting == 2
    with pytest.raises(UpstreamBusy):
        await callers.line.acquire("a")
    await callers.come("b")
    assert callers.line.waiting == 3


async def test_who_waits_too_long_is_told_and_leaves_no_trace() -> None:
    line = queue(wait_s=0.01)
    held = await line.acquire("a")
    with pytest.raises(UpstreamBusy) as refusal:
        await line.acquire("b")
    assert (refusal.value.status, refusal.value.retry_after_s) == (503, 1)
    assert (line.running, line.waiting) == (1, 0)
    held.release()
    (await line.acquire("b")).release()
    assert line.running == 0


async def test_the_advice_follows_how_long_permits_are_held() -> None:
    clock = FakeClock()
    line = queue(waiting=0, clock=clock)
    for _ in range(100):
        permit = await line.acquire("a")
        clock.advance(20)
        permit.release()
    await line.acquire("a")
    with pytest.raises(UpstreamBusy) as refusal:
        await line.acquire("b")
    assert refusal.value.retry_after_s == 20


async def test_releasing_twice_gives_one_permit_back() -> None:
    line = queue(running=2)
    one, _two = await line.acquire("a"), await line.acquire("a")
    one.release()
    one.release()
    assert line.running == 1


@pytest.mark.parametrize("seed", range(30))
async def test_no_permit_is_lost_or_doubled_whatever_is_cancelled_when(seed: int) -> None:
    dice = random.Random(seed)
    line = queue(running=dice.randint(1, 4), waiting=dice.randint(0, 40), wait_s=dice.choice([0.0005, 60.0]))
    most = 0

    async def caller() -> None:
        nonlocal most
        try:
            permit = await line.acquire(dice.choice("abcde"))
        except UpstreamBusy:
            return
        try:
            most = max(most, line.running)
            for _ in range(dice.randint(0, 4)):
                await asyncio.sleep(0)
        finally:
            permit.release()

    tasks: list[asyncio.Task[None]] = []
    for _ in range(400):
        match dice.randint(0, 3):
            case 0 | 1:
                tasks.append(asyncio.create_task(caller()))
            case 2 if tasks:
                dice.choice(tasks).cancel()
            case _:
                await asyncio.sleep(0)
        assert line.running <= line._limits.running
        assert line.waiting <= line._limits.waiting
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (line.running, line.waiting, len(line._lines)) == (0, 0, 0)
    assert most <= line._limits.running
    assert line.try_acquire() is not None


async def test_a_line_is_full_for_one_tenant_before_it_is_for_others_and_never_while_a_permit_is_free() -> None:
    line = queue(running=1, waiting=8)
    assert not line.full("a")
    held = await line.acquire("a")
    assert not line.full("a")
    callers = Callers(line)
    waiting = await callers.come("a", 2)
    assert line.full("a")
    assert not line.full("b")
    held.release()
    await settle()
    assert not line.full("a")
    await callers.serve(2)
    await asyncio.gather(*waiting)


async def test_a_place_is_kept_for_those_who_are_expected_among_lookups_and_who_is_here_goes_before_them() -> None:
    line = queue(running=1, waiting=8)
    for _ in range(30):
        line.expect("a")(True)  # all who were expected needed a permit
    held = await line.acquire("b")
    told = [line.expect("a") for _ in range(3)]
    assert line.full("a")
    here = asyncio.create_task(line.acquire("a"))
    await settle()
    assert line.waiting == 1
    assert not line.full("b")
    for known in told:
        known(True)
    assert not line.full("a")
    held.release()
    (await here).release()
    assert (line.running, line.waiting) == (0, 0)


async def test_where_there_is_no_place_left_none_is_kept() -> None:
    line = queue(running=1, waiting=0)
    held = await line.acquire("a")
    line.expect("a")(True)
    held.release()
    assert not line.full("a")
    known = line.expect("a")
    held = await line.acquire("a")
    known(False)
    held.release()
    assert line.running == 0


async def test_those_whom_the_cache_mostly_serves_keep_few_places() -> None:
    line = queue(running=1, waiting=8)
    for _ in range(60):
        line.expect("a")(False)
    await line.acquire("b")
    for _ in range(50):
        line.expect("a")
    assert not line.full("a")


async def test_a_free_permit_is_given_whoever_is_expected() -> None:
    line = queue(running=1, waiting=0)
    for _ in range(30):
        line.expect("a")(True)
    for _ in range(2):
        line.expect("a")
    assert line.full("a")
    (await line.acquire("a")).release()
