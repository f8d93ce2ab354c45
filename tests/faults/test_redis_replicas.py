"""Real proxies over a real engine, and what befalls either (rows 70-75, 81-86, 96, 97, 100)."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.support.chaos import ChaosProxy, Weather
from tests.support.histories import Kept, Made, Served, violations
from tests.support.polling import eventually_true
from tests.support.ports import HOST
from tests.support.process import ServerExited
from tests.support.redis import RedisServer, redis_server
from tests.support.replica_load import asking
from tests.support.replicas import Fleet, Replica, fleet, version_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.proxy import Answered

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

LEASE_S = 1.0
SETTINGS = {
    "CACHEPROXY_REPLICAS__LEASE_MS": "1000",
    "CACHEPROXY_REPLICAS__ACK_TIMEOUT_MS": "800",
    "CACHEPROXY_REPLICAS__RECONCILE_S": "5",
}
SLACK_S = 0.3
"""What a busy machine may add to a deadline."""


class Site:
    """One engine, and replicas that reach it each by a way of its own."""

    def __init__(self, redis: RedisServer, ways: list[ChaosProxy], fleet_: Fleet) -> None:
        self.redis = redis
        self.ways = ways
        self.fleet = fleet_

    @property
    def replicas(self) -> list[Replica]:
        return self.fleet.replicas

    async def well(self) -> None:
        """Mend everything, and return once every replica serves what another one keeps."""
        for way in self.ways:
            way.weather = Weather()
            way.heal()
        text = fresh()
        await self.fleet.spread(text)

        async def acknowledged() -> bool:
            return (await self.replicas[0].purge(text)).status == 200

        # An engine that came back has to wait for leases of before.
        await eventually_true(acknowledged, "a purge is acknowledged", 10)


@asynccontextmanager
async def site(tmp_path_factory: pytest.TempPathFactory, count: int = 3) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server())
        ways = [await stack.enter_async_context(ChaosProxy(redis.port)) for _ in range(count)]
        urls = [f"redis://{HOST}:{way.port}/0" for way in ways]
        started = await stack.enter_async_context(fleet(tmp_path_factory.mktemp("site"), urls, **SETTINGS))
        yield Site(redis, ways, started)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """One engine with three replicas for the module."""
    async with site(tmp_path_factory) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def three(whole: Site) -> AsyncIterator[Site]:
    """The same with nothing recorded, in fair weather; and no promise broken at the end."""
    await whole.well()
    whole.fleet.history.clear()
    yield whole
    assert violations(whole.fleet.history) == []


def fresh() -> str:
    """Return a question that nobody asked."""
    return f"What is {uuid4().hex}?"


async def test_what_one_keeps_all_serve_and_what_one_purges_nobody_serves(three: Site) -> None:
    texts = [fresh() for _ in range(5)]
    await three.fleet.spread(*texts)
    told = await three.replicas[0].purge(*texts)
    assert (told.status, told.json()["acked"]) == (200, True)
    for replica in three.replicas:
        assert [await replica.serves(text) for text in texts] == [None] * 5
    assert told.json()["purged"] == 5


@pytest.mark.quiet
@pytest.mark.parametrize("how", ["kill", "hang"])
async def test_every_request_is_answered_while_the_engine_is_away(three: Site, how: str) -> None:
    known = [fresh() for _ in range(5)]
    await three.fleet.spread(*known)
    async with asking(three.replicas, lambda number: known[number % 5] if number % 2 else fresh()) as load:
        await asyncio.sleep(1)
        fair = load.since(0)
        away_s = time.monotonic()
        if how == "kill":
            await three.redis.kill()
        else:
            three.redis.pause()
        await asyncio.sleep(4)
        back_s = time.monotonic()
        if how == "kill":
            await three.redis.start()
        else:
            three.redis.resume()
        await asyncio.sleep(1)
    assert load.failures == {}
    away = load.since(away_s, back_s)
    assert len(away.asked) > 50
    late = away.since(away_s + LEASE_S + SLACK_S)
    assert late.outcomes["hit"] == 0, "nothing kept is served without a lease"
    # At first a few wait for one deadline each; then the breaker is open, and a miss costs what it always does.
    assert away.since(away_s, away_s + 1).quantile_ms(0.99) < fair.quantile_ms(0.99) + 100 + 1000 * SLACK_S
    assert away.since(away_s + 1).of("miss").quantile_ms(0.5) < 1.5 * fair.of("miss").quantile_ms(0.5) + 10
    await three.well()


async def test_what_was_purged_while_the_engine_was_away_is_not_served_again(three: Site) -> None:
    text = fresh()
    await three.fleet.spread(text)
    three.redis.pause()
    told = await three.replicas[0].purge(text)
    assert told.status in {202, 503}, told.body[:300]
    assert await three.replicas[0].serves(text) is None
    await asyncio.sleep(LEASE_S + SLACK_S)
    assert [await replica.serves(text) for replica in three.replicas] == [None] * 3
    three.redis.resume()
    await three.well()

    async def gone() -> bool:
        return [await replica.serves(text) for replica in three.replicas] == [None] * 3

    await eventually_true(gone, "the purge is made good", 10)


async def test_an_engine_that_comes_back_empty_means_that_everything_is_purged(three: Site) -> None:
    texts = [fresh() for _ in range(5)]
    await three.fleet.spread(*texts)
    await three.redis.kill()
    await three.redis.start()
    await asyncio.sleep(LEASE_S + SLACK_S)
    for replica in three.replicas:
        assert [await replica.serves(text) for text in texts] == [None] * 5
    await three.well()


async def test_flushing_everything_means_that_everything_is_purged(three: Site) -> None:
    texts = [fresh() for _ in range(5)]
    await three.fleet.spread(*texts)
    await three.redis.ask("FLUSHALL")
    await asyncio.sleep(LEASE_S + SLACK_S)
    for replica in three.replicas:
        assert [await replica.serves(text) for text in texts] == [None] * 5
    await three.well()


async def test_a_full_engine_keeps_nothing_new_and_still_purges(three: Site) -> None:
    kept, new = fresh(), fresh()
    await three.fleet.spread(kept)
    await three.redis.fill()
    for replica in three.replicas:
        assert (await replica.ask(new)).status == 200
        assert await replica.serves(new) is None
    assert [await replica.serves(kept) for replica in three.replicas] != [None] * 3
    told = await three.replicas[1].purge(kept)
    assert (told.status, told.json()["acked"]) == (200, True)
    assert [await replica.serves(kept) for replica in three.replicas] == [None] * 3
    await asyncio.sleep(2 * LEASE_S)
    async with asking(three.replicas, lambda number: fresh()) as load:
        await asyncio.sleep(0.5)
    assert load.failures == {}
    await three.redis.drain()
    await three.well()


@pytest.mark.parametrize(
    "weather",
    [
        Weather(delay_s=0.005, jitter_s=0.1),
        Weather(bytes_per_s=10_000),
    ],
    ids=["uneven", "narrow"],
)
async def test_a_bad_way_to_the_engine_never_gives_a_wrong_answer(three: Site, weather: Weather) -> None:
    known = [fresh() for _ in range(5)]
    await three.fleet.spread(*known)
    async with asking(three.replicas, lambda number: known[number % 5] if number % 2 else fresh()) as load:
        for way in three.ways[1:]:
            way.weather = weather
        await asyncio.sleep(1.5)
        await three.replicas[0].purge(known[0])
        for way in three.ways:
            way.reset()
        await asyncio.sleep(1.5)
    assert load.failures == {}


async def test_replies_cut_anywhere_never_give_a_wrong_answer(three: Site) -> None:
    known = [fresh() for _ in range(5)]
    await three.fleet.spread(*known)
    async with asking(three.replicas, lambda number: known[number % 5] if number % 2 else fresh()) as load:
        for after in (1, 20, 100, 700, 3000):
            for way in three.ways:
                way.reset()
                way.cut_replies(after)
            await asyncio.sleep(0.4)
    assert load.failures == {}


async def test_a_replica_cut_off_stops_serving_and_learns_what_it_missed(three: Site) -> None:
    purged, changed = fresh(), fresh()
    await three.fleet.spread(purged, changed)
    three.ways[2].partition()
    called_s = time.monotonic()
    told = await three.replicas[0].purge(purged, changed)
    assert told.status == 202
    said = told.json()
    assert (said["acked"], len(said["laggards"])) == (False, 1)
    await three.replicas[0].ask(changed)

    async def silent() -> bool:
        return await three.replicas[2].serves(purged) is None and await three.replicas[2].serves(changed) is None

    await eventually_true(silent, "the one cut off serves nothing", LEASE_S + SLACK_S + 1)
    assert time.monotonic() - called_s < 2 * LEASE_S + 1 + SLACK_S
    three.ways[2].heal()

    async def knows() -> bool:
        return await three.replicas[2].serves(changed) == await three.replicas[0].serves(changed) is not None

    await eventually_true(knows, "it serves what is there now", 10)
    assert await three.replicas[2].serves(purged) is None


async def test_a_replica_that_slept_serves_nothing_of_before(three: Site) -> None:
    texts = [fresh() for _ in range(20)]
    await three.fleet.spread(*texts)
    sleeper = three.replicas[1]
    sleeper.server.send(signal.SIGSTOP)
    await asyncio.sleep(LEASE_S + SLACK_S)
    await three.replicas[0].purge_for_good(*texts)
    waking = [asyncio.create_task(sleeper.ask(text)) for text in texts]  # in its sockets when it wakes
    await asyncio.sleep(0.05)
    sleeper.server.send(signal.SIGCONT)
    answers = await asyncio.gather(*waking)
    assert {answer.outcome for answer in answers} <= {"miss", "bypass"}


async def test_a_fill_that_slept_through_a_purge_is_not_kept(three: Site) -> None:
    text = fresh()
    await three.fleet.spread(text)
    before = three.fleet.ids[text]
    sleeper = three.replicas[1]
    await three.replicas[0].purge(text)
    hold = asyncio.Event()
    late = await _begin_fill(three, sleeper, text, hold)
    sleeper.server.send(signal.SIGSTOP)
    await three.replicas[0].purge(text)
    assert three.fleet.ids[text] == before
    hold.set()
    await asyncio.sleep(LEASE_S + SLACK_S)
    sleeper.server.send(signal.SIGCONT)
    told = await late
    assert told.status == 200
    await asyncio.sleep(SLACK_S)
    assert [await replica.serves(text) for replica in three.replicas] == [None] * 3


async def _begin_fill(three: Site, replica: Replica, text: str, hold: asyncio.Event) -> asyncio.Task[Answered]:
    three.fleet.hold = hold
    asking_ = asyncio.create_task(replica.ask(text))
    made = len([event for event in three.fleet.history if isinstance(event, Made)])

    async def begun() -> bool:
        return len([event for event in three.fleet.history if isinstance(event, Made)]) > made

    await eventually_true(begun, "the backend is asked", 5)
    three.fleet.hold = None
    return asking_


async def test_a_log_that_was_trimmed_is_noticed(three: Site) -> None:
    text, new = fresh(), fresh()
    await three.fleet.spread(text)
    three.ways[2].partition()
    await three.replicas[0].purge(text)
    await three.replicas[0].ask(text)
    await three.replicas[0].ask(new)
    for key in await three.redis.ask("KEYS", "*log*"):
        await three.redis.ask("XTRIM", key, "MAXLEN", 0)
    three.ways[2].heal()

    async def knows() -> bool:
        served = [await three.replicas[2].serves(one) for one in (text, new)]
        return None not in served and served == [await three.replicas[0].serves(one) for one in (text, new)]

    await eventually_true(knows, "it read everything again", 10)


async def test_connections_killed_by_the_engine_lose_no_message(three: Site) -> None:
    texts = [fresh() for _ in range(10)]
    for text in texts:
        await three.redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await three.replicas[0].ask(text)
    await three.fleet.spread(*texts, fresh())
    for text in texts:
        await three.redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await three.replicas[1].purge(text)
    await asyncio.sleep(LEASE_S + SLACK_S)
    for replica in three.replicas:
        assert [await replica.serves(text) for text in texts] == [None] * 10


async def test_a_document_that_the_engine_lost_is_a_miss_everywhere(three: Site) -> None:
    text = fresh()
    await three.fleet.spread(text)
    entry = three.fleet.ids[text]
    for key in await three.redis.ask("KEYS", f"*doc*{entry}*"):
        await three.redis.ask("DEL", key)
    assert [(await replica.ask(text)).status for replica in three.replicas] == [200] * 3
    await three.fleet.spread(text)


HOSTILE: dict[str, tuple[str | bytes, ...]] = {
    "a string": ("SET", "garbage"),
    "a pickle": ("SET", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x93."),
    "a hash of nonsense": ("HSET", "r", "\x00\xff", "m", "\x81", "ver", "NaN"),
    "a huge record": ("HSET", "r", "x" * 20_000_000, "m", "x", "ver", "99999999999999999"),
    "a list": ("RPUSH", "a"),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_what_no_proxy_wrote_is_never_served(three: Site, what: str) -> None:
    text = fresh()
    await three.fleet.spread(text)
    [key] = await three.redis.ask("KEYS", f"*doc*{three.fleet.ids[text]}*")
    await three.redis.ask("DEL", key)
    command, *rest = HOSTILE[what]
    await three.redis.ask(command, key, *rest)
    for log in await three.redis.ask("KEYS", "*log"):
        await three.redis.ask("XADD", log, "*", "op", "put", "id", "\xff" * 100, "ver", "-1", "m", "\x00")
        await three.redis.ask("XADD", log, "*", "op", "of a later version", "x", "y")
        await three.redis.ask("XADD", log, "*", "neither", "of both")
    answers = [await replica.ask(text) for replica in three.replicas]
    assert [answer.status for answer in answers] == [200] * 3
    made = {event.version for event in three.fleet.history if isinstance(event, Made)}
    assert {version_of(answer) for answer in answers} <= made
    await three.redis.ask("DEL", key)
    await three.well()


async def test_names_of_callers_do_not_become_names_of_keys(three: Site) -> None:
    hostile = ["a:b", "{x}", "}{", "*", "cacheproxy:{c}:epoch", "\u2028", "../..", "%0d%0a"]
    before = set(await three.redis.ask("KEYS", "*"))
    for name in hostile:
        headers = {"x-cacheproxy-tier": "exact", "x-cacheproxy-namespace": name, "x-cacheproxy-tags": name}
        told = await three.replicas[0].ask(fresh(), {key: value for key, value in headers.items() if value.isascii()})
        assert told.status in {200, 400}
    after = set(await three.redis.ask("KEYS", "*")) - before
    allowed = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:{}-_.%")
    assert all(set(key) <= allowed and key.startswith(b"{cacheproxy:") for key in after), after
    assert not any(name.encode() in key for name in ("a:b", "..", "epoch:") for key in after)


async def test_another_installs_data_refuses_the_start(three: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("other")
    other = Fleet(three.fleet.upstream, directory, SETTINGS)
    three.fleet.upstream.always(three.fleet.answer)
    secret = directory / "replica-0"
    secret.mkdir()
    (secret / "install.key").write_bytes(bytes(range(32)))
    secret.chmod(0o700)
    with pytest.raises(ServerExited) as told:
        await other.add(three.redis.url)
    assert told.value.code != 0
    assert "install" in told.value.said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb"), "allow_eviction"),
        (("--requirepass", "x"), "password"),
    ],
)
async def test_an_engine_that_cannot_be_used_refuses_the_start(
    three: Site, tmp_path_factory: pytest.TempPathFactory, flags: tuple[str, ...], says: str
) -> None:
    async with redis_server(*flags) as redis:
        with pytest.raises(ServerExited) as told:
            await Fleet(three.fleet.upstream, tmp_path_factory.mktemp("refused"), SETTINGS).add(redis.url)
        three.fleet.upstream.always(three.fleet.answer)
        assert says in told.value.said


async def test_a_start_without_the_engine_serves_and_joins_when_it_comes(
    three: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with redis_server() as redis:
        await redis.kill()
        async with fleet(tmp_path_factory.mktemp("early"), [redis.url], **SETTINGS) as early:
            assert (await early.replicas[0].ask(fresh())).outcome == "miss"
            await redis.start()
            await early.spread(fresh())


async def test_races_of_fills_and_purges_break_no_promise(three: Site) -> None:
    texts = [fresh() for _ in range(6)]
    await three.fleet.spread(*texts)
    done = time.monotonic() + 6
    counted = itertools.count()

    async def ask(replica: Replica, start: int) -> None:
        for number in itertools.count(start):
            if time.monotonic() > done:
                return
            await replica.ask(texts[number % 6])

    async def purge(replica: Replica, start: int) -> None:
        for number in itertools.count(start):
            if time.monotonic() > done:
                return
            await replica.purge(texts[number % 6])
            next(counted)
            await asyncio.sleep(0.01)

    await asyncio.gather(
        *(ask(replica, lane) for replica in three.replicas for lane in range(4)),
        *(purge(replica, lane) for lane, replica in enumerate(three.replicas)),
    )
    history = three.fleet.history
    assert next(counted) > 20
    assert sum(isinstance(event, Served) for event in history) > 100
    assert sum(isinstance(event, Kept) for event in history) > 20
    views = await three.fleet.views(texts)
    kept = [view for view in zip(*([*view.values()] for view in views.values()), strict=True)]
    assert all(len(set(versions)) == 1 for versions in kept), views
