"""What every Upstream promises: client and pool on a real port, and the backend of the pipeline tests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cacheproxy import settings
from cacheproxy.errors import UpstreamBroken, UpstreamUnreachable
from cacheproxy.ports import Call
from cacheproxy.upstream.client import HttpUpstream
from cacheproxy.upstream.open import open_pool
from cacheproxy.upstream.small import open_small
from tests.support.backend import Backend, Told
from tests.support.clock import FakeClock
from tests.support.polling import eventually
from tests.support.upstream import CUT, Hold, ScriptedUpstream, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from cacheproxy.ports import Answer, Upstream

CALL = Call(method="POST", target="/v1/chat/completions", headers=(("x-a", "b"),), body=b"{}")
TWICE = (("x-twice", "1"), ("x-twice", "2"))


@dataclass(frozen=True, kw_only=True)
class World:
    """An Upstream, how to script its backend, and what the backend saw."""

    upstream: Upstream
    play: Callable[[Sequence[bytes | asyncio.Event], bool], None]
    bodies: Callable[[], list[object]]
    left_early: Callable[[], int]
    vanish: Callable[[], None]


def in_process() -> World:
    backend = Backend()

    def play(parts: Sequence[bytes | asyncio.Event], broken: bool) -> None:
        steps = [*parts, UpstreamBroken("cut")] if broken else list(parts)
        backend.play(Told(status=201, headers=TWICE, steps=steps))

    return World(
        upstream=backend,
        play=play,
        bodies=lambda: [call.body for call in backend.calls],
        left_early=lambda: backend.left_early,
        vanish=lambda: backend.play(Told(before=[UpstreamUnreachable("gone")])),
    )


def over_http(server: ScriptedUpstream, client: Upstream) -> World:
    def play(parts: Sequence[bytes | asyncio.Event], broken: bool) -> None:
        steps = [Hold(part) if isinstance(part, asyncio.Event) else part for part in parts]
        server.play(stream(*steps, *([CUT] if broken else []), status=201, headers=TWICE))

    def vanish() -> None:
        assert server._server is not None
        server._server.close()

    return World(
        upstream=client,
        play=play,
        bodies=lambda: [request.body for request in server.requests],
        left_early=lambda: sum(request.client_left_s is not None for request in server.requests),
        vanish=vanish,
    )


@pytest_asyncio.fixture(params=["in process", "over HTTP", "in a pool", "small"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "in process":
        yield in_process()
        return
    async with ScriptedUpstream() as server:
        config = settings.Upstream(url=server.url)
        if request.param == "over HTTP":
            async with HttpUpstream(config) as client:
                yield over_http(server, client)
        elif request.param == "small":
            asked = settings.Small(url=server.url, model="m")
            async with open_small(settings.Settings(small=asked), FakeClock()) as small:
                yield over_http(server, small)
                await eventually(lambda: small.state().running == 0, "every permit is given back")
        else:
            async with open_pool(settings.Settings(upstream=config), FakeClock()) as pool:
                yield over_http(server, pool)
                await eventually(lambda: pool.states()[0].running == 0, "every permit is given back")


async def read(answer: Answer, into: bytearray) -> None:
    async with answer:
        async for chunk in answer.chunks():
            into += chunk


async def test_an_answer_comes_as_it_was_sent(world: World) -> None:
    world.play([b"one ", b"two"], False)
    answer = await world.upstream.send(CALL)
    assert answer.status == 201
    assert [pair for pair in answer.headers if pair[0] == "x-twice"] == list(TWICE)
    got = bytearray()
    await read(answer, got)
    assert got == b"one two"
    assert world.bodies() == [b"{}"]
    assert world.left_early() == 0


async def test_a_body_can_be_read_before_it_is_whole(world: World) -> None:
    held = asyncio.Event()
    world.play([b"one ", held, b"two"], False)
    async with await world.upstream.send(CALL) as answer:
        chunks = answer.chunks()
        assert await anext(chunks) == b"one "
        held.set()
        assert await anext(chunks) == b"two"
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)


async def test_an_early_end_is_told_after_the_bytes_before_it(world: World) -> None:
    world.play([b"one "], True)
    got = bytearray()
    with pytest.raises(UpstreamBroken):
        await read(await world.upstream.send(CALL), got)
    assert got == b"one "


async def test_a_backend_that_is_gone_is_unreachable(world: World) -> None:
    world.vanish()
    with pytest.raises(UpstreamUnreachable):
        await world.upstream.send(CALL)


async def test_leaving_an_answer_early_cancels_the_exchange(world: World) -> None:
    world.play([b"one ", asyncio.Event()], False)
    async with await world.upstream.send(CALL) as answer:
        assert await anext(answer.chunks()) == b"one "
    await eventually(lambda: world.left_early() == 1, "the backend sees that nobody reads on")


@pytest.mark.parametrize("turns", [0, 1, 5, 50])
async def test_cancelling_at_any_time_leaves_the_upstream_usable(world: World, turns: int) -> None:
    async def send_and_read() -> None:
        await read(await world.upstream.send(CALL), bytearray())

    world.play([b"one ", asyncio.Event()], False)
    task = asyncio.ensure_future(send_and_read())
    await eventually(lambda: len(world.bodies()) == 1, "the call arrives")
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    world.play([b"again"], False)
    got = bytearray()
    await read(await world.upstream.send(CALL), got)
    assert got == b"again"
