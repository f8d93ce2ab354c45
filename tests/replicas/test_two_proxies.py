"""Two real proxies over one engine: what an operator or a caller does at one of them holds at the other."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio

from cacheproxy.access.keyring import KeyRecord, key_digest, new_key
from cacheproxy.keydesk import KeyDesk
from tests.support.openai_wire import completion, events
from tests.support.operators import admin, tenant_of, told
from tests.support.polling import eventually_true
from tests.support.proxy import Proxy, chat, proxy_settings, started
from tests.support.redis import RedisServer, redis_server
from tests.support.upstream import Hold, answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TERMS = {"timeout_ms": 2000, "lease_ms": 4000}  # a busy machine is not what is tested
FEEDBACK = "/v1/cache/feedback"


@asynccontextmanager
async def replica(upstream_url: str, redis: RedisServer, folder: object, **sections: object) -> AsyncIterator[Proxy]:
    given = {"store": {"url": redis.url}, "replicas": TERMS, **sections}
    async with started(proxy_settings(upstream_url, folder, **given)) as live:  # type: ignore[arg-type]  # sections

        async def keeps() -> bool:
            asked = await live.ask(chat("How long does an egg boil?"), key="sk-cp-warm")
            return asked.outcome == "hit" or asked.status == 401

        await eventually_true(keeps, "the replica keeps and serves", within_s=20.0)
        yield live


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(
    module_upstream: ScriptedUpstream, engine: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Proxy, Proxy]]:
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(replica(module_upstream.url, engine, tmp_path_factory.mktemp(name)))
            for name in ("one", "other")
        ]
        yield one, other


async def cached_at(proxy: Proxy, text: str, key: str) -> None:
    await eventually_true(lambda: proxy.cached(chat(text), key=key), "the other replica knows the entry")


async def test_what_one_replica_kept_the_other_serves(
    pair: tuple[Proxy, Proxy], upstream: ScriptedUpstream, key: str
) -> None:
    one, other = pair
    await one.fill(chat(), key=key)
    await cached_at(other, chat()["messages"][0]["content"], key)
    assert (await other.ask(chat(), key=key)).outcome == "hit"


async def test_replicas_that_miss_at_once_ask_the_backend_once(
    pair: tuple[Proxy, Proxy], upstream: ScriptedUpstream, key: str
) -> None:
    release = asyncio.Event()
    upstream.always([Hold(release), *answer(completion("Jupiter."))])
    asked = [asyncio.create_task(proxy.ask(chat(), key=key)) for proxy in pair for _ in range(5)]
    await upstream.received(1)
    await asyncio.sleep(0.5)
    release.set()
    answered = await asyncio.gather(*asked)
    assert {one.status for one in answered} == {200}
    assert {one.content for one in answered} == {"Jupiter."}
    assert upstream.calls == 1
    operated = [Proxy(url=proxy.admin_url, admin_url=proxy.admin_url) for proxy in pair]
    told = [(await proxy.call("GET", "/metrics")).body.decode() for proxy in operated]
    turns = re.findall(r'cacheproxy_replica_flight_seconds_count\{turn="joined"\} 1.0', "".join(told))
    assert len(turns) == 1, "one of them led, the other one waited"


async def test_what_is_not_kept_is_waited_for_once(
    pair: tuple[Proxy, Proxy], upstream: ScriptedUpstream, key: str
) -> None:
    one, other = pair
    release = asyncio.Event()
    upstream.play([Hold(release), *answer(completion("Cut", finish="length"))])
    upstream.always(answer(completion("Whole.")))
    first = asyncio.create_task(one.ask(chat(), key=key))
    await upstream.received(1)
    second = asyncio.create_task(other.ask(chat(), key=key))
    await asyncio.sleep(0.3)
    release.set()
    assert ((await first).content, (await second).content) == ("Cut", "Whole.")
    assert upstream.calls == 2


async def test_tenants_never_wait_for_each_other(pair: tuple[Proxy, Proxy], upstream: ScriptedUpstream) -> None:
    one, other = pair
    release = asyncio.Event()
    upstream.play([Hold(release), *answer(completion("mine"))], answer(completion("yours")))
    first = asyncio.create_task(one.ask(chat(), key=f"sk-{uuid4().hex}"))
    await upstream.received(1)
    assert (await other.ask(chat(), key=f"sk-{uuid4().hex}")).content == "yours"
    release.set()
    assert (await first).content == "mine"


async def test_a_caller_who_streams_goes_alone_before_long(
    pair: tuple[Proxy, Proxy], upstream: ScriptedUpstream, key: str
) -> None:
    one, other = pair
    release = asyncio.Event()
    upstream.play([Hold(release), *answer(completion("slow"))])
    upstream.always(stream(*events("fast")))
    first = asyncio.create_task(one.ask(chat(), key=key))
    await upstream.received(1)
    assert (await other.ask(chat(stream=True), key=key)).content == "fast"
    release.set()
    assert (await first).content == "slow"


async def test_policy_is_the_same_at_both_and_changed_by_one_at_a_time(pair: tuple[Proxy, Proxy]) -> None:
    one, other = pair
    before = await admin(one, "GET", "policies")
    changed = await admin(
        one, "PATCH", "policies/categories/default", {"ttl_s": 4321.0}, headers={"if-match": before.get("etag") or ""}
    )
    assert changed.status == 200, changed.body

    async def follows() -> bool:
        return (await admin(other, "GET", "policies")).get("etag") == changed.get("etag")

    await eventually_true(follows, "the other replica follows", within_s=20.0)
    late = await admin(
        other, "PATCH", "policies/categories/default", {"ttl_s": 5.0}, headers={"if-match": before.get("etag") or ""}
    )
    assert late.status == 412
    versions = (await told(other, "GET", "policies/versions"))["versions"]
    rolled = await admin(other, "POST", "policies/rollback", {"version": versions[1]["version"]})
    assert rolled.status == 200, rolled.body

    async def rolled_back() -> bool:
        return (await admin(one, "GET", "policies")).get("etag") == rolled.get("etag")

    await eventually_true(rolled_back, "the first replica follows, too", within_s=20.0)


async def test_a_bad_word_at_one_replica_quarantines_at_the_other(
    pair: tuple[Proxy, Proxy], upstream: ScriptedUpstream, key: str
) -> None:
    one, other = pair
    text = f"How do I boil an egg? {uuid4().hex}"
    await one.fill(chat(text), key=key)
    await cached_at(other, text, key)
    hit = await one.ask(chat(text), key=key)
    said = await one.ask({"id": hit.get("x-cacheproxy-entry"), "verdict": "bad"}, key=key, target=FEEDBACK)
    assert said.status == 200, said.body

    async def quarantined() -> bool:
        return not await other.cached(chat(text), key=key)

    await eventually_true(quarantined, "the other replica serves it no more", within_s=20.0)


async def test_an_erasure_reaches_every_replica_and_says_so(
    pair: tuple[Proxy, Proxy], upstream: ScriptedUpstream, key: str
) -> None:
    one, other = pair
    text = f"How do I peel a mango? {uuid4().hex}"
    await one.fill(chat(text), key=key)
    await cached_at(other, text, key)
    tenant = await tenant_of(one, key)
    assert tenant == await tenant_of(other, key)
    erased = await admin(one, "POST", "purge", {"tenant": tenant})
    assert erased.status == 200, erased.body
    parts = {part["part"]: part for part in erased.json()["parts"]}
    assert parts["replicas"]["removed"] == 1
    assert not await other.cached(chat(text), key=key)


async def test_a_key_revoked_anywhere_is_refused_everywhere_and_tokens_are_counted_together(
    upstream: ScriptedUpstream, engine: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folders = [tmp_path_factory.mktemp(name) for name in ("keys-one", "keys-other")]
    keyed = {
        "access": {"mode": "keys"},
        "store": {"url": engine.url, "prefix": "keyed"},
        "upstream": {"url": upstream.url, "api_key": "sk-backend"},
    }
    loaded = proxy_settings(upstream.url, folders[0], **keyed)
    desk = await asyncio.to_thread(KeyDesk, loaded, folders[0])
    made = new_key()
    record = {"id": "k1", "name": "shop", "hash": key_digest(made.encode(), desk.secret).hex(), "tenant": "shop"}
    limited = msgspec.convert({**record, "tokens_per_day": 30}, KeyRecord)
    await asyncio.to_thread(desk.change, lambda _: [limited])
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(replica(upstream.url, engine, folder, **keyed)) for folder in folders
        ]
        usage = {"prompt_tokens": 20, "completion_tokens": 11, "total_tokens": 31}
        upstream.always(answer(completion("Ripe.", usage=usage)))
        assert (await one.ask(chat("When is a mango ripe?"), key=made)).status == 200

        async def spent() -> bool:
            only = {"cache-control": "only-if-cached"}
            hit = await other.ask(chat("When is a mango ripe?"), key=made, headers=only)
            return hit.status == 200 and hit.get("x-ratelimit-remaining-tokens") == "0"

        await eventually_true(spent, "the other replica knows what was spent at the first", within_s=20.0)
        assert (await other.ask(chat(f"When is it {uuid4().hex}?"), key=made)).status == 429
        assert (await asyncio.to_thread(desk.used)) == {"k1": 31}
        await asyncio.to_thread(desk.change, lambda _: [msgspec.structs.replace(limited, revoked=True)])

        async def refused() -> bool:
            return {(await each.ask(chat(), key=made)).status for each in (one, other)} == {401}

        await eventually_true(refused, "both refuse the key", within_s=20.0)


async def test_without_the_engine_requests_are_answered_and_policy_stays(
    upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    async with redis_server() as engine, replica(upstream.url, engine, tmp_path_factory.mktemp("alone")) as one:
        await one.fill(chat(), key=key)
        await engine.kill()
        answered = await one.ask(chat(f"again {uuid4().hex}"), key=key)
        assert (answered.status, answered.outcome) == (200, "miss")
        refused = await admin(one, "PATCH", "policies/categories/default", {"ttl_s": 7.0})
        assert refused.status == 503, refused.body
        await engine.start()

        async def back() -> bool:
            return (await one.ask(chat(), key=key)).outcome == "hit" or await one.cached(chat(), key=key)

        await eventually_true(back, "it keeps and serves again", within_s=30.0)
