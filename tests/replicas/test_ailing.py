"""A replica that cannot use its engine says why, and what to do: on every port, and on the command line."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from cacheproxy.cli import main
from cacheproxy.shared.layout import Layout
from tests.support.operators import admin
from tests.support.polling import eventually_true
from tests.support.proxy import Proxy, chat, proxy_settings, started
from tests.support.redis import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.redis import RedisServer
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TERMS = {"timeout_ms": 2000, "lease_ms": 4000}  # a busy machine is not what is tested
LAYOUT = Layout("cacheproxy", 1)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging of the test process alone."""
    monkeypatch.setattr("cacheproxy.logs.configure", lambda _: None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica(
    module_upstream: ScriptedUpstream, engine: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Proxy]:
    folder = tmp_path_factory.mktemp("replica")
    settings = proxy_settings(module_upstream.url, folder, store={"url": engine.url}, replicas=TERMS)
    async with started(settings) as live:
        yield live


async def why(proxy: Proxy) -> str:
    """Return what readiness says of the replica."""
    told = await proxy.call("GET", "/readyz")
    assert told.status == 200, "a balancer keeps it"
    parts = told.json()["parts"]
    assert (parts["replica"] == "ok") == (parts["store"] == "ok"), parts
    return str(parts["replica"])


async def says(proxy: Proxy, words: str) -> bool:
    return words in await why(proxy)


async def run(*words: str) -> Result:
    return await asyncio.to_thread(lambda: CliRunner().invoke(main, list(words)))


def port_of(proxy: Proxy) -> str:
    return str(urlsplit(proxy.url).port)


async def test_all_is_well_while_it_is(replica: Proxy) -> None:
    await eventually_true(partial(says, replica, "ok"), "it serves", within_s=20)
    told = await run("ready", "--port", port_of(replica), "--timeout", "20")
    assert (told.exit_code, told.stdout) == (0, f"{replica.url}/readyz: ready\n"), told.output
    listed = await run("replicas", "--url", replica.admin_url)
    assert listed.exit_code == 0, listed.output
    [row] = [line for line in listed.stdout.splitlines() if " *" in line]
    assert "serving" in row
    assert (await admin(replica, "GET", "stats")).json()["degraded"] == ""


async def test_who_is_listed_holds_a_lease_and_has_an_age(replica: Proxy) -> None:
    told = json.loads((await run("replicas", "--url", replica.admin_url, "--json")).stdout)
    [one] = told["members"]
    assert one["replica"] == told["replica"]
    assert 0 < one["lease_s"] <= 4.0
    assert one["behind_s"] == 0
    assert one["up_s"] > 0


async def ghost(engine: RedisServer, state: str) -> None:
    """Have the engine know a replica that has applied nothing, and whose lease holds for seconds more."""
    seconds, micros = await engine.ask("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    for log in LAYOUT.logs:
        await engine.ask("HSET", LAYOUT.key(log, "live"), "ghost-1", f"{now_ms}|{state}|0-1|9000|7200000")


async def exorcised(engine: RedisServer) -> None:
    for log in LAYOUT.logs:
        await engine.ask("HDEL", LAYOUT.key(log, "live"), "ghost-1")


async def test_a_purge_that_not_all_have_done_ends_with_3(
    replica: Proxy, engine: RedisServer, upstream: ScriptedUpstream
) -> None:
    await eventually_true(partial(says, replica, "ok"), "it serves", within_s=20)
    await replica.fill(chat("Who built the Eiffel Tower?"), key="sk-purged")
    await ghost(engine, "serving")
    try:
        told = await run("purge", "--category", "default", "--url", replica.admin_url)
        assert told.exit_code == 3, told.output
        assert "not heard from yet: ghost-1" in told.stderr
    finally:
        await exorcised(engine)

    async def acknowledged() -> bool:
        await replica.fill(chat("Who built the Eiffel Tower?"), key="sk-purged")
        told = await run("purge", "--category", "default", "--url", replica.admin_url)
        assert "1 entry removed" in told.output
        return told.exit_code == 0

    # An engine that began just now may have replaced another one: until a lease of that has ended, not all is known.
    await eventually_true(acknowledged, "all have done it", within_s=30)


async def test_a_replica_that_is_syncing_is_listed_and_told_by_3(replica: Proxy, engine: RedisServer) -> None:
    await ghost(engine, "syncing")
    try:
        told = await run("replicas", "--url", replica.admin_url)
        assert told.exit_code == 3, told.output
        [row] = [line.split() for line in told.stdout.splitlines() if line.startswith("ghost-1")]
        assert row[1:4] == ["syncing", "0.0", "s"]
        assert row[-2:] == ["2", "h"]
    finally:
        await exorcised(engine)


async def test_an_install_of_others_is_named(replica: Proxy, engine: RedisServer) -> None:
    await eventually_true(partial(says, replica, "ok"), "it serves", within_s=20)
    install = LAYOUT.key("c", "install")
    mark = await engine.ask("HGET", install, "mark")
    await engine.ask("HSET", install, "mark", "0" * 32)
    epoch = LAYOUT.key("c", "epoch")
    await engine.ask("SET", epoch, "1:" + "0" * 32)  # a gap, so that everything is read again
    try:
        await eventually_true(partial(says, replica, "belongs to another install"), "it says so", within_s=20)
        assert "another store.prefix" in await why(replica)
    finally:
        await engine.ask("HSET", install, "mark", mark)
    await eventually_true(partial(says, replica, "ok"), "it is over", within_s=20)


async def test_without_memory_what_is_kept_is_served_and_the_reason_is_told(
    replica: Proxy, engine: RedisServer, upstream: ScriptedUpstream
) -> None:
    await eventually_true(partial(says, replica, "ok"), "it serves", within_s=20)
    asked = iter(range(1000))
    await engine.fill()

    async def full() -> bool:
        await replica.ask(chat(f"How deep is lake number {next(asked)}?"), key="sk-full")
        return await says(replica, "has no memory left")

    try:
        await eventually_true(full, "it says so", within_s=20)
        told = await why(replica)
        assert told.startswith("degraded: what is kept is served")
        assert "raise its maxmemory" in told
    finally:
        await engine.drain()
    await eventually_true(partial(says, replica, "ok"), "it is over", within_s=20)


async def test_data_of_another_program_are_named(replica: Proxy, engine: RedisServer) -> None:
    await eventually_true(partial(says, replica, "ok"), "it serves", within_s=20)
    key = LAYOUT.key("c", "epoch")
    epoch = await engine.ask("GET", key)
    await engine.ask("SET", key, "99:" + "0" * 32)
    try:
        await eventually_true(partial(says, replica, "of schema 99"), "it says so", within_s=20)
        assert "give another prefix" in await why(replica)
    finally:
        await engine.ask("SET", key, epoch)
    await eventually_true(partial(says, replica, "ok"), "it is over", within_s=20)


async def test_a_password_that_is_asked_for_from_now_on_is_named(replica: Proxy, engine: RedisServer) -> None:
    await engine.ask("CONFIG", "SET", "requirepass", "sesame")
    client = engine.client(password="sesame")
    async with client:
        await client.execute_command("CLIENT", "KILL", "SKIPME", "yes", "TYPE", "normal")
        try:
            await eventually_true(partial(says, replica, "wants a password"), "it says so", within_s=20)
        finally:
            await client.execute_command("CONFIG", "SET", "requirepass", "")


async def test_an_engine_that_is_away_is_named_with_what_to_do(replica: Proxy, engine: RedisServer) -> None:
    await engine.kill()
    try:
        await eventually_true(partial(says, replica, "cannot be reached"), "it says so", within_s=20)
        told = await run("ready", "--port", port_of(replica), "--timeout", "20")
        assert told.exit_code == 0, told.output
        assert "ready, degraded: nothing kept is served: the engine cannot be reached" in told.stdout
        assert "look whether it runs" in told.stdout
        stats = await run("stats", "--url", replica.admin_url)
        assert "degraded: nothing kept is served" in stats.stderr
        listed = await run("replicas", "--url", replica.admin_url)
        assert listed.exit_code == 1
        assert "look whether it runs" in listed.stderr
        entries = await admin(replica, "GET", "entries")
        assert entries.status == 503
        assert "/readyz" in entries.json()["error"]["message"]
    finally:
        await engine.start()
    await eventually_true(partial(says, replica, "ok"), "it serves again", within_s=20)
