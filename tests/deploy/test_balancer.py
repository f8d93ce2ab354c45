"""deploy/haproxy.cfg before three real proxies: who serves whom, what moves when one ends, what is never repeated."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.support.balancer import SERVED_BY, balancing
from tests.support.openai_wire import completion, encode, events
from tests.support.polling import eventually, eventually_true
from tests.support.ports import free_port
from tests.support.process import ServerProcess
from tests.support.proxy import CHAT, Answered, chat
from tests.support.replicas import Caller
from tests.support.upstream import Hold, answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.balancer import Balancer
    from tests.support.rawhttp import Response
    from tests.support.upstream import ScriptedUpstream

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

EXACT = {"x-cacheproxy-tier": "exact"}
KEYS = [f"sk-caller-{n}" for n in range(60)]
EVENTS = events("one two three")


class Replicas:
    """Three proxies on ports that stay theirs; each may end and be started again."""

    def __init__(self, folder: Path, upstream_url: str) -> None:
        self.ports = [free_port() for _ in range(3)]
        self.servers: list[ServerProcess] = []
        self._folder = folder
        self._upstream_url = upstream_url

    async def start(self, number: int) -> ServerProcess:
        flags = ("--port", str(self.ports[number]), "--store", "memory://")
        server = await ServerProcess.start(self._folder / str(number), self._upstream_url, *flags)
        self.servers[number : number + 1] = [server]
        return server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicas(
    module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    started = Replicas(tmp_path_factory.mktemp("replicas"), module_upstream.url)
    async with AsyncExitStack() as stack:
        for number in range(3):
            await started.start(number)
        stack.push_async_callback(lambda: asyncio.gather(*(server.kill() for server in started.servers)))
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def balancer(replicas: Replicas, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Balancer]:
    async with balancing(tmp_path_factory.mktemp("balancer"), replicas.ports) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def three(balancer: Balancer, replicas: Replicas) -> Balancer:
    """The balancer, all three replicas in turn for callers."""
    for number, server in enumerate(replicas.servers):
        if server.ended:
            await replicas.start(number)
    await eventually_true(lambda: knows(balancer, 3), "three replicas are up", within_s=20)
    return balancer


async def knows(balancer: Balancer, up: int) -> bool:
    told = (await balancer.look("/metrics")).body.decode()
    return told.count('haproxy_server_status{proxy="proxies",server="proxy') >= 3 and up == sum(
        line.endswith(" 1") for line in told.splitlines() if _is_up(line)
    )


def _is_up(line: str) -> bool:
    return line.startswith('haproxy_server_status{proxy="proxies"') and 'state="UP"' in line


class Asking:
    """Asks one request after the other on one connection, as clients do: the last one is over when the next begins."""

    def __init__(self, balancer: Balancer) -> None:
        self._caller = Caller(balancer.url)

    async def served_by(self, key: str | None, **headers: str) -> str:
        """Return who answers a fresh question of a caller."""
        return (await self.asked(key, uuid4().hex, **headers)).get(SERVED_BY) or ""

    async def asked(self, key: str | None, text: str, **headers: str) -> Answered:
        """Return the answer to a question of a caller."""
        told = {"content-type": "application/json", **EXACT, **{n.replace("_", "-"): v for n, v in headers.items()}}
        if key is not None:
            told["authorization"] = f"Bearer {key}"
        answered = await self._caller.call("POST", CHAT, told, encode(chat(text)))
        assert answered.status == 200, answered.body
        return answered

    def leave(self) -> None:
        """Close the connection."""
        self._caller.leave()

    async def homes(self, keys: list[str] = KEYS) -> dict[str, str]:
        """Return who serves each caller."""
        return {key: await self.served_by(key) for key in keys}


@pytest.fixture
def asking(three: Balancer) -> Iterator[Asking]:
    one = Asking(three)
    yield one
    one.leave()


async def test_a_caller_has_one_replica_and_callers_are_dealt_out(asking: Asking, upstream: ScriptedUpstream) -> None:
    first = await asking.homes()
    assert await asking.homes() == first
    assert min(Counter(first.values()).values()) >= 6
    assert len(set(first.values())) == 3


@pytest.mark.parametrize("header", ["api_key", "x_api_key", "x_goog_api_key"])
async def test_a_caller_is_known_by_any_credential(asking: Asking, upstream: ScriptedUpstream, header: str) -> None:
    found = [[await asking.served_by(None, **{header: key}) for key in KEYS[:12]] for _ in range(2)]
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


async def test_namespaces_of_a_caller_are_dealt_out(asking: Asking, upstream: ScriptedUpstream) -> None:
    found = [[await asking.served_by(KEYS[0], x_cacheproxy_namespace=f"n{n}") for n in range(12)] for _ in range(2)]
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


async def test_a_repeated_question_is_a_hit(asking: Asking, upstream: ScriptedUpstream) -> None:
    for key in KEYS[:9]:
        text = uuid4().hex
        told = [await asking.asked(key, text) for _ in range(3)]
        assert [one.get("x-cacheproxy-outcome") for one in told] == ["miss", "hit", "hit"]


async def test_a_stream_is_passed_on_piece_by_piece(three: Balancer, upstream: ScriptedUpstream) -> None:
    holds = [asyncio.Event() for _ in EVENTS]
    steps = [step for hold, one in zip(holds, EVENTS, strict=True) for step in (Hold(hold), one)]
    upstream.always(stream(*steps))
    holds[0].set()
    exchange = await three.begin(chat(uuid4().hex, stream=True), key=KEYS[0], headers=EXACT)
    for position, hold in enumerate(holds[1:], start=1):
        sent = b"".join(EVENTS[:position])
        assert await exchange.until(sent) == sent
        hold.set()
    assert (await exchange.rest()).complete


async def test_heads_as_large_as_the_proxies_take_pass(three: Balancer, upstream: ScriptedUpstream) -> None:
    told = await three.ask(chat(uuid4().hex), key=KEYS[0], headers={"x-large": "a" * 30_000})
    assert told.status == 200


async def test_a_caller_who_leaves_lets_the_backend_go(three: Balancer, upstream: ScriptedUpstream) -> None:
    upstream.always([Hold(asyncio.Event()), *answer(completion("Never."))])
    connection = await three.post(chat(uuid4().hex), key=KEYS[0], headers=EXACT)
    asked = await upstream.received(1)
    connection.leave()
    await eventually(lambda: asked.client_left_s is not None, "the backend was let go", within_s=5)


async def test_a_crowd_of_one_caller_is_dealt_out_by_load(
    three: Balancer, asking: Asking, upstream: ScriptedUpstream
) -> None:
    release = asyncio.Event()
    upstream.always([Hold(release), *answer(completion("Late."))])
    crowd = [asyncio.create_task(three.ask(chat(uuid4().hex), key=KEYS[0], headers=EXACT)) for _ in range(30)]
    await upstream.received(30, within_s=10)
    release.set()
    share = Counter([told.get(SERVED_BY) for told in await asyncio.gather(*crowd)])
    assert len(share) >= 2
    assert max(share.values()) <= 16  # one and a half times the average of ten, and the one that is on its way
    upstream.always(None)
    home = await asking.served_by(KEYS[0])
    assert [await asking.served_by(KEYS[0]) for _ in range(5)] == [home] * 5


async def test_callers_of_a_killed_replica_move_and_others_stay(
    three: Balancer, asking: Asking, replicas: Replicas, upstream: ScriptedUpstream
) -> None:
    before = await asking.homes()
    await replicas.servers[0].kill()
    after = await asking.homes()  # from the first request on, before any health check: none fails
    moved = {key for key in KEYS if before[key] != after[key]}
    assert moved == {key for key in KEYS if before[key] == "proxy1"}
    assert len({after[key] for key in moved}) == 2  # to both of the others, not all to one
    await replicas.start(0)
    await eventually_true(lambda: knows(three, 3), "it is back", within_s=20)
    assert await asking.homes() == before


async def test_a_replica_that_drains_gets_nobody_new_and_ends_its_streams(
    three: Balancer, asking: Asking, replicas: Replicas, upstream: ScriptedUpstream
) -> None:
    before = await asking.homes()
    key = next(key for key in KEYS if before[key] == "proxy2")
    release = asyncio.Event()
    upstream.play(stream(EVENTS[0], Hold(release), *EVENTS[1:]))
    exchange = await three.begin(chat(uuid4().hex, stream=True), key=key, headers=EXACT)
    await exchange.until(EVENTS[0])
    replicas.servers[1].send(signal.SIGTERM)
    others = [await asking.served_by(one) for one in KEYS for _ in range(2)]
    assert "proxy2" not in others[10:]  # the first ones may have had a connection that was open
    release.set()
    ended: Response = await exchange.rest()
    assert ended.complete
    assert ended.body == b"".join(EVENTS)
    assert await replicas.servers[1].wait() == 0


async def test_a_request_whose_replica_dies_is_not_asked_again(
    three: Balancer, asking: Asking, replicas: Replicas, upstream: ScriptedUpstream
) -> None:
    before = await asking.homes()
    key = next(key for key in KEYS if before[key] == "proxy3")
    upstream.reset()
    upstream.always([Hold(asyncio.Event()), *answer(completion("Never."))])
    answer_to_come = asyncio.create_task(three.ask(chat(uuid4().hex), key=key, headers=EXACT))
    await upstream.received(1)
    await replicas.servers[2].kill()
    told = await answer_to_come
    assert told.status == 502
    await asyncio.sleep(1.0)
    assert upstream.calls == 1


async def test_it_tells_that_it_has_nobody_to_ask(tmp_path: Path, three: Balancer) -> None:
    async def well() -> bool:
        return (await three.look("/healthz")).status == 200

    await eventually_true(well, "it has somebody to ask")  # on a busy machine a proxy may miss a check
    assert (await three.look("/elsewhere")).status == 404
    assert b"haproxy_backend_http_requests_total" in (await three.look("/metrics")).body
    with socket.socket() as nobody:  # bound and not listening: nobody else gets this port meanwhile
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(AssertionError, match="the balancer has a proxy"):
            async with balancing(tmp_path, [nobody.getsockname()[1]], within_s=5.0):
                pass
