from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import UpstreamBroken, UpstreamTimeout
from cacheproxy.flight import Flight, Flights, Head, Settlement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from cacheproxy.flight import Reader

    Step = Callable[[Flight], Awaitable[None] | None]

KEY = b"k"
HEAD = Head(status=200, headers=(("content-type", "text/event-stream"),))
KEPT = Settlement(stored=True, reason="kept", entry_id="e")
WINDOW, KEEP = 8, 32


def held_bytes(flight: Flight) -> int:
    return sum(map(len, flight._chunks))  # memory has no public face


class Tower:
    """Flights whose tasks the test can see."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.flights = Flights(self._spawn, window_bytes=WINDOW, keep_bytes=KEEP)

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    def open(self, exchange: Script, key: bytes | None = KEY) -> Reader:
        reader = self.flights.open(key, "form", exchange)
        self.flight = reader.flight
        return reader

    def join(self, key: bytes = KEY) -> Reader:
        flight = self.flights.find(key)
        assert flight is not None
        return flight.attach()


class Script:
    """An exchange that does what the test tells it to, a step at a time."""

    def __init__(self) -> None:
        self._steps: asyncio.Queue[Step | None] = asyncio.Queue()
        self._cancelled = False
        self._waits = False

    async def __call__(self, flight: Flight) -> None:
        try:
            while (step := await self._steps.get()) is not None:
                self._waits = True
                waiting = step(flight)
                if waiting is not None:
                    await waiting
                self._waits = False
        except asyncio.CancelledError:
            self._cancelled = True
            raise

    def waits(self) -> bool:
        return self._waits

    def cancelled(self) -> bool:
        return self._cancelled

    async def do(self, *steps: Step | None) -> None:
        for step in steps:
            self._steps.put_nowait(step)
        await turns()

    async def write(self, *chunks: bytes) -> None:
        await self.do(*(lambda flight, chunk=chunk: flight.write(chunk) for chunk in chunks))

    async def begin(self, *chunks: bytes) -> None:
        await self.do(lambda flight: flight.begin(HEAD))
        await self.write(*chunks)

    async def end(self) -> None:
        await self.do(lambda flight: flight.end())

    async def land(self) -> None:
        await self.do(lambda flight: flight.settle(KEPT), None)

    async def fail(self, error: BaseException) -> None:
        def fail(_: Flight) -> None:
            raise error

        await self.do(fail)


async def turns(count: int = 20) -> None:
    """Let everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)


class Listener:
    """Reads a flight in a task of its own, as fast as it can."""

    def __init__(self, reader: Reader) -> None:
        self.heard = bytearray()
        self.task = asyncio.ensure_future(self._listen(reader))

    async def _listen(self, reader: Reader) -> bytes:
        async for chunk in reader.chunks():
            self.heard += chunk
        return bytes(self.heard)


@pytest.fixture
def tower() -> Tower:
    return Tower()


@pytest.fixture
def script() -> Script:
    return Script()


async def test_readers_get_the_bytes_as_they_come(tower: Tower, script: Script) -> None:
    leader = Listener(tower.open(script))
    follower = Listener(tower.join())
    await script.begin(b"one ")
    assert leader.heard == follower.heard == b"one "
    await script.write(b"two ", b"three")
    assert leader.heard == follower.heard == b"one two three"
    await script.end()
    assert await leader.task == await follower.task == b"one two three"


async def test_a_late_follower_gets_the_bytes_from_the_start(tower: Tower, script: Script) -> None:
    leader = Listener(tower.open(script))
    await script.begin(b"one ", b"two ")
    late = Listener(tower.join())
    await turns()
    assert late.heard == b"one two "
    await script.end()
    latest = tower.join()
    assert await latest.head() == HEAD
    assert await latest.body() == await leader.task == b"one two "


async def test_everybody_waits_for_one_head(tower: Tower, script: Script) -> None:
    readers = [tower.open(script), tower.join(), tower.join()]
    heads = asyncio.gather(*(reader.head() for reader in readers))
    await turns()
    assert not heads.done()
    await script.begin()
    assert await heads == [HEAD] * 3
    assert len(tower.tasks) == 1


async def test_a_follower_waits_for_the_head_no_longer_than_it_wants_to(tower: Tower, script: Script) -> None:
    leader, follower = tower.open(script), tower.join()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await follower.head()
    follower.leave()
    await script.begin()
    assert await leader.head() == HEAD


async def test_a_follower_who_stops_waiting_takes_nothing_from_the_others(tower: Tower, script: Script) -> None:
    leader, follower = tower.open(script), tower.join()
    waiting = asyncio.ensure_future(follower.head())
    await turns()
    waiting.cancel()
    await turns()
    await script.begin()
    assert await leader.head() == HEAD
    assert await follower.head() == HEAD


async def test_an_error_before_the_head_reaches_everybody(tower: Tower, script: Script) -> None:
    readers = [tower.open(script), tower.join()]
    heads = asyncio.gather(*(reader.head() for reader in readers), return_exceptions=True)
    error = UpstreamTimeout("late")
    await script.fail(error)
    assert await heads == [error, error]
    for reader in readers:
        with pytest.raises(UpstreamTimeout):
            await reader.started()
        with pytest.raises(UpstreamTimeout):
            await reader.body()


async def test_an_error_in_the_middle_comes_after_the_bytes_before_it(tower: Tower, script: Script) -> None:
    leader, slow = Listener(tower.open(script)), tower.join()
    await script.begin(b"one ", b"two ")
    await script.fail(UpstreamBroken("cut"))
    with pytest.raises(UpstreamBroken, match="cut"):
        await leader.task
    assert leader.heard == b"one two "
    late = Listener(slow)
    with pytest.raises(UpstreamBroken, match="cut"):
        await late.task
    assert late.heard == b"one two "


async def test_a_failed_flight_cannot_be_found_by_whoever_hears_of_it(tower: Tower, script: Script) -> None:
    found: list[Flight | None] = []

    async def follow(reader: Reader) -> None:
        with pytest.raises(UpstreamBroken):
            await reader.head()
        found.append(tower.flights.find(KEY))

    following = asyncio.gather(*(follow(reader) for reader in (tower.open(script), tower.join(), tower.join())))
    await script.fail(UpstreamBroken("no"))
    await following
    assert found == [None] * 3


async def test_a_bug_in_the_exchange_wakes_everybody(tower: Tower, script: Script) -> None:
    leader = Listener(tower.open(script))
    await script.begin(b"one")
    await script.fail(ZeroDivisionError())
    with pytest.raises(UpstreamBroken):
        await leader.task
    with pytest.raises(ZeroDivisionError):
        await tower.tasks[0]
    assert tower.flights.find(KEY) is None


async def test_started_waits_for_the_first_byte_or_the_end(tower: Tower, script: Script) -> None:
    reader = tower.open(script)
    started = asyncio.ensure_future(reader.started())
    await script.begin()
    assert not started.done()
    await script.write(b"x")
    assert started.done()
    empty, other = Script(), tower.flights
    reader = other.open(b"other", "form", empty)
    started = asyncio.ensure_future(reader.started())
    await empty.begin()
    await empty.end()
    assert started.done()


async def test_the_exchange_goes_on_when_its_opener_leaves(tower: Tower, script: Script) -> None:
    leader, follower = tower.open(script), Listener(tower.join())
    await script.begin(b"one ")
    leader.leave()
    await script.write(b"two")
    await script.end()
    assert await follower.task == b"one two"
    assert not script.cancelled()


async def test_the_last_reader_to_leave_ends_the_exchange(tower: Tower, script: Script) -> None:
    leader, follower = tower.open(script), tower.join()
    await script.begin(b"one ")
    follower.leave()
    await turns()
    assert not script.cancelled()
    leader.leave()
    await turns()
    assert script.cancelled()
    assert tower.flights.aloft == 0


async def test_nobody_can_join_a_flight_that_everybody_left(tower: Tower, script: Script) -> None:
    leader = tower.open(script)
    await script.begin(b"one ")
    leader.leave()
    assert tower.flights.find(KEY) is None
    again = Script()
    reader = tower.open(again)
    await turns()
    assert tower.flights.find(KEY) is reader.flight
    await again.begin(b"new")
    await again.end()
    assert await reader.body() == b"new"


async def test_an_exchange_that_has_ended_outlives_its_readers_to_be_stored(tower: Tower, script: Script) -> None:
    leader = tower.open(script)
    await script.begin(b"one ")
    await script.end()
    leader.leave()
    await turns()
    assert not script.cancelled()
    follower = tower.join()
    waiting = asyncio.ensure_future(follower.flight.settled(5.0))
    await script.land()
    assert await waiting == KEPT
    assert tower.flights.find(KEY) is None
    assert await follower.body() == b"one "


async def test_a_settlement_that_takes_too_long_is_not_waited_for(tower: Tower, script: Script) -> None:
    reader = tower.open(script)
    settlement = await reader.flight.settled(0.001)
    assert not settlement.stored
    await script.begin()
    await script.end()
    await script.land()
    assert await reader.flight.settled(0.001) == KEPT


async def test_a_task_cancelled_before_its_first_step_leaves_nothing_behind(tower: Tower, script: Script) -> None:
    leader, follower = tower.open(script), tower.join()
    tower.tasks[0].cancel()
    for reader in (leader, follower):
        with pytest.raises(UpstreamBroken):
            await reader.head()
    assert tower.flights.find(KEY) is None
    assert tower.flights.aloft == 0
    assert not (await leader.flight.settled(1.0)).stored


async def test_a_private_flight_cannot_be_found(tower: Tower, script: Script) -> None:
    reader = tower.open(script, key=None)
    assert tower.flights.find(KEY) is None
    assert tower.flights.aloft == 1
    await script.begin(b"one")
    await script.end()
    await script.land()
    assert await reader.body() == b"one"
    assert tower.flights.aloft == 0


async def test_a_grounded_flight_serves_its_readers_and_no_others(tower: Tower, script: Script) -> None:
    leader, follower = tower.open(script), tower.join()
    tower.flights.ground(leader.flight)
    assert tower.flights.find(KEY) is None
    await script.begin(b"one")
    await script.end()
    assert await leader.body() == await follower.body() == b"one"


async def test_a_flight_that_lands_does_not_take_its_successor_away(tower: Tower, script: Script) -> None:
    first = tower.open(script)
    tower.flights.ground(first.flight)
    second = tower.open(Script())
    await script.begin()
    await script.end()
    await script.land()
    assert tower.flights.find(KEY) is second.flight
    assert tower.flights.aloft == 1


CHUNK = b"1234567."


async def test_the_backend_waits_for_the_fastest_reader(tower: Tower, script: Script) -> None:
    fast, slow = tower.open(script), tower.join()
    await script.begin(*[CHUNK] * 20)
    assert script.waits()
    assert held_bytes(fast.flight) == WINDOW + len(CHUNK)
    chunks, lagging = fast.chunks(), slow.chunks()
    first = await anext(chunks)
    await turns()
    assert held_bytes(fast.flight) == len(first)  # what was handed over may not have been sent on yet
    assert await anext(lagging) == first
    second = await anext(chunks)
    await turns()
    assert held_bytes(fast.flight) == len(first + second)


async def test_a_reader_of_the_whole_body_is_never_waited_for(tower: Tower, script: Script) -> None:
    reader = tower.open(script)
    whole = asyncio.ensure_future(reader.body())
    await script.begin(*[CHUNK] * 50)
    assert not script.waits()
    await script.end()
    assert await whole == CHUNK * 50


async def test_a_writer_that_waits_goes_on_when_its_reader_wants_the_whole_body(tower: Tower, script: Script) -> None:
    reader = tower.open(script)
    await script.begin(*[CHUNK] * 10)
    assert script.waits()
    whole = asyncio.ensure_future(reader.body())
    await turns()
    assert not script.waits()
    await script.end()
    assert await whole == CHUNK * 10


async def test_a_writer_that_waits_is_cancelled_when_its_reader_leaves(tower: Tower, script: Script) -> None:
    reader = tower.open(script)
    await script.begin(*[CHUNK] * 10)
    assert script.waits()
    reader.leave()
    await turns()
    assert script.cancelled()


async def test_a_slow_reader_holds_up_nobody_and_is_cut_off_in_the_end(tower: Tower, script: Script) -> None:
    fast, slow = Listener(tower.open(script)), tower.join()
    lagging = slow.chunks()
    await script.begin(CHUNK)
    assert await anext(lagging) == CHUNK
    await script.write(*[CHUNK] * 50)
    await script.end()
    assert await fast.task == CHUNK * 51
    assert held_bytes(slow.flight) <= KEEP + WINDOW + len(CHUNK)
    with pytest.raises(UpstreamBroken, match="too far behind"):
        await anext(lagging)


async def test_a_reader_who_was_cut_off_keeps_no_exchange_alive(tower: Tower, script: Script) -> None:
    fast, slow = tower.open(script), tower.join()
    listener = Listener(fast)
    await script.begin(*[CHUNK] * 10)
    assert slow.cut is not None
    listener.task.cancel()
    fast.leave()
    await turns()
    assert script.cancelled()
    slow.leave()


async def test_a_body_too_large_to_keep_cannot_be_joined(tower: Tower, script: Script) -> None:
    leader = Listener(tower.open(script))
    await script.begin(b"x" * KEEP)
    assert tower.flights.find(KEY) is not None
    await script.write(b"x")
    assert tower.flights.find(KEY) is None
    await script.end()
    assert await leader.task == b"x" * (KEEP + 1)


async def test_nobody_joins_where_the_next_bytes_would_cut_him_off(tower: Tower, script: Script) -> None:
    Listener(tower.open(script))
    slow = tower.join()
    await script.begin(b"x" * (KEEP + 1))
    assert slow.cut is None
    assert held_bytes(slow.flight) == KEEP + 1
    assert tower.flights.find(KEY) is None


async def test_bytes_that_no_reader_needs_are_forgotten(tower: Tower, script: Script) -> None:
    leader = Listener(tower.open(script))
    await script.begin(*[CHUNK] * 100)
    assert held_bytes(tower.flight) <= WINDOW + len(CHUNK)
    await script.end()
    assert await leader.task == CHUNK * 100


@pytest.mark.parametrize(
    ("chunks", "within"), [([], True), ([b"12345678"], True), ([b"1234", b"56789"], False)], ids=repr
)
async def test_a_reader_learns_whether_a_body_ends_within_a_limit(chunks: list[bytes], within: bool) -> None:
    tower, script = Tower(), Script()
    reader = tower.open(script)
    waiting = asyncio.create_task(reader.ends_within(WINDOW))
    await script.write(*chunks)
    await turns()
    assert waiting.done() is not within
    await script.end()
    assert await waiting is within
    reader.leave()
    await script.land()


async def test_waiting_for_a_short_body_ends_with_the_exchange() -> None:
    tower, script = Tower(), Script()
    reader = tower.open(script)
    waiting = asyncio.create_task(reader.ends_within(WINDOW))
    await script.fail(UpstreamBroken("cut"))
    with pytest.raises(UpstreamBroken):
        await waiting
    reader.leave()


@pytest.mark.parametrize(
    ("status", "bad"), [(200, False), (400, False), (404, False), (429, True), (500, True), (503, True)]
)
def test_a_status_says_whether_another_try_may_help(status: int, bad: bool) -> None:
    assert Head(status=status, headers=()).failed is bad


@pytest.mark.parametrize(
    ("headers", "streams"),
    [
        ((("Content-Type", "Text/Event-Stream; charset=utf-8"),), True),
        ((("content-type", "application/json"),), False),
        ((), False),
    ],
)
def test_an_event_stream_is_known_by_its_type(headers: tuple[tuple[str, str], ...], streams: bool) -> None:
    assert Head(status=200, headers=headers).streams is streams
