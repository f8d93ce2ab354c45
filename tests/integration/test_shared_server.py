"""The engine that the tests of replicas stand on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import TimeoutError as RedisTimeout

from tests.support.redis import redis_server, valkey
from tests.support.redis_groups import redis_cluster, sentinel_group

if TYPE_CHECKING:
    from tests.support.redis import RedisServer


async def test_a_server_answers_and_is_empty_again_after_a_crash(redis: RedisServer) -> None:
    assert await redis.ask("SET", "a", "1")
    await redis.kill()
    await redis.start()
    assert await redis.ask("GET", "a") is None


async def test_a_paused_server_answers_nothing_until_it_is_resumed(redis: RedisServer) -> None:
    redis.pause()
    async with redis.client(socket_timeout=0.1) as client:
        with pytest.raises(RedisTimeout):
            await client.execute_command("PING")
    redis.resume()
    assert await redis.ask("PING")


async def test_two_servers_have_ports_of_their_own() -> None:
    async with redis_server() as one, redis_server("--requirepass", "s3cret") as other:
        assert one.port != other.port
        async with other.client(password="s3cret") as client:
            assert await asyncio.wait_for(client.execute_command("PING"), 5)


async def test_valkey_stands_in_where_it_is_installed() -> None:
    async with redis_server(program=valkey()) as server:
        assert "valkey_version" in await server.ask("INFO", "server")


@pytest.mark.slow
async def test_sentinels_make_another_server_the_master() -> None:
    async with sentinel_group() as group:
        first = await group.master()
        await first.kill()
        assert await group.failed_over(first) is not first


@pytest.mark.slow
async def test_a_cluster_serves_every_slot_and_moves_some() -> None:
    async with redis_cluster() as cluster:
        owner = await cluster.owner("{a}")
        await owner.ask("SET", "{a}", "1")
        other = next(node for node in cluster.nodes[:3] if node is not owner)
        await cluster.move(100, owner, other)
        assert await cluster.works()
        assert await (await cluster.owner("{a}")).ask("GET", "{a}") == b"1"
