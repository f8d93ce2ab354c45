from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cacheproxy.errors import CacheProxyError, UpstreamBroken
from cacheproxy.flight import Flight, Flights, Head

if TYPE_CHECKING:
    from cacheproxy.flight import Reader

KEY = b"k"
HEAD = Head(status=200, headers=())
WINDOW, KEEP, CHUNK = 8, 32, 12
PATIENCE_S = 10.0


# What may happen, in any order


@dataclass(frozen=True)
class Write:
    """The backend sends some bytes."""

    size: int


@dataclass(frozen=True)
class End:
    """The backend's answer ends cleanly, or breaks off."""

    broken: bool


@dataclass(frozen=True)
class Join:
    """One more caller asks the same."""


@dataclass(frozen=True)
class Send:
    """A caller's connection takes some pieces; the callers are numbered around."""

    caller: int
    pieces: int


@dataclass(frozen=True)
class Leave:
    """A caller leaves."""

    caller: int


@dataclass(frozen=True)
class Cancel:
    """The exchange is cancelled from outside, as at the end of the process."""


@dataclass(frozen=True)
class Turn:
    """The event loop runs on."""

    count: int


Action = Write | End | Join | Send | Leave | Cancel | Turn

callers = st.integers(0, 5)
schedules = st.lists(
    st.one_of(
        st.builds(Write, st.integers(0, CHUNK)),
        st.builds(Write, st.just(CHUNK)),
        st.builds(Turn, st.integers(1, 5)),
        st.builds(Turn, st.integers(1, 5)),
        st.builds(Send, callers, st.integers(1, 8)),
        st.builds(Send, callers, st.just(1000)),
        st.just(Join()),
        st.builds(Leave, callers),
        st.builds(End, st.booleans()),
        st.just(Cancel()),
    ),
    max_size=40,
)


class Caller:
    """Reads a flight no faster than its connection takes the pieces."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.got = b""
        self.error: CacheProxyError | None = None
        self.stays = True
        self.room = asyncio.Semaphore(0)
        self.task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        try:
            async for chunk in self.reader.chunks():
                self.got += chunk
                await self.room.acquire()
        except CacheProxyError as exc:
            self.error = exc

    def take(self, pieces: int) -> None:
        for _ in range(pieces):
            self.room.release()

    def leave(self) -> None:
        self.stays = False
        self.task.cancel()
        self.reader.leave()


class World:
    """One flight, everybody who may touch it, and what must be true of it at any time."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[Write | End] = asyncio.Queue()
        self.sent = b""
        self.ended = False
        self.failed = False
        self.complaints: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.flights = Flights(loop.create_task, window_bytes=WINDOW, keep_bytes=KEEP)
        self.callers = [Caller(self.flights.open(KEY, None, self.exchange))]
        self.flight = self.callers[0].reader.flight

    @property
    def staying(self) -> list[Caller]:
        return [caller for caller in self.callers if caller.stays]

    async def exchange(self, flight: Flight) -> None:
        flight.begin(HEAD)
        while True:
            match await self.steps.get():
                case End(broken=True):
                    self.failed = True
                    raise UpstreamBroken("cut")
                case End():
                    self.ended = True
                    flight.end()
                    return
                case Write(size=size):
                    chunk = bytes(at % 251 for at in range(len(self.sent), len(self.sent) + size))
                    self.sent += chunk
                    await flight.write(chunk)

    async def do(self, action: Action) -> None:
        match action:
            case Write() | End():
                self.steps.put_nowait(action)
            case Join():
                self.join()
            case Send(caller=number, pieces=pieces):
                self.callers[number % len(self.callers)].take(pieces)
            case Leave(caller=number):
                self.callers[number % len(self.callers)].leave()
            case Cancel():
                assert self.flight.task is not None
                self.failed |= self.flight.task.cancel()
            case Turn(count=count):
                for _ in range(count):
                    await asyncio.sleep(0)

    def join(self) -> None:
        flight = self.flights.find(KEY)
        if flight is not None:
            self.callers.append(Caller(flight.attach()))
        else:
            gone = self.ended or self.failed or not self.staying
            assert gone or len(self.sent) > KEEP, "a flight that could be shared was not found"

    def check(self) -> None:
        held = sum(map(len, self.flight._chunks))  # memory has no public face
        assert held <= KEEP + WINDOW
        if len(self.staying) == len(self.callers):
            fastest = max(caller.reader.read_bytes for caller in self.callers)
            assert len(self.sent) - fastest <= WINDOW + CHUNK

    async def finish(self) -> None:
        """Let the backend end and every connection take all there is."""
        self.steps.put_nowait(End(broken=False))
        for caller in self.callers:
            caller.take(1000)
        assert self.flight.task is not None
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([self.flight.task, *(caller.task for caller in self.callers)])
        await asyncio.sleep(0)

    def check_the_end(self) -> None:
        for caller in self.staying:
            assert caller.task.done()
            assert not caller.task.cancelled()
            if caller.error is None:
                assert self.ended
                assert caller.got == self.sent
            elif caller.reader.cut is not None:
                assert self.sent.startswith(caller.got)
            else:
                assert not self.ended
                assert caller.got == self.sent
        assert self.ended or self.failed or not self.staying or all(caller.reader.cut for caller in self.staying)
        assert self.flights.find(KEY) is None
        assert self.flights.aloft == 0
        assert self.complaints == []


async def play(schedule: list[Action]) -> None:
    world = World()
    for action in schedule:
        await world.do(action)
        world.check()
    await world.finish()
    world.check_the_end()


@given(schedule=schedules)
@settings(max_examples=300)
@example(schedule=[Cancel()])
@example(schedule=[Leave(0)])
@example(schedule=[Join(), Cancel(), Join()])
@example(schedule=[Turn(1), Leave(0), Join(), Write(5)])
@example(schedule=[Join(), *[Write(CHUNK)] * 9, Send(0, 1000), Turn(5), Turn(5), Leave(0)])
@example(schedule=[Turn(1), Write(5), End(broken=False), Turn(5), Join(), Leave(0), Leave(1)])
def test_whoever_stays_gets_every_byte_or_the_error_after_them(schedule: list[Action]) -> None:
    asyncio.run(play(schedule))


@given(schedule=schedules, readers=st.integers(1, 4))
def test_readers_of_whole_bodies_get_the_whole_or_the_error(schedule: list[Action], readers: int) -> None:
    async def play_whole() -> None:
        world = World()
        flight = world.flight
        bodies = [asyncio.ensure_future(reader.body()) for reader in (flight.attach() for _ in range(readers))]
        for action in schedule:
            if not isinstance(action, Join):
                await world.do(action)
        await world.finish()
        async with asyncio.timeout(PATIENCE_S):
            found = await asyncio.gather(*bodies, return_exceptions=True)
        if world.ended:
            assert found == [world.sent] * readers
        else:
            assert world.failed
            assert all(isinstance(body, UpstreamBroken) for body in found)

    asyncio.run(play_whole())
