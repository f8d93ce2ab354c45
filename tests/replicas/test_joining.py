"""A proxy becomes a replica: it gets the secret of the others, and without the engine it keeps nothing of its own."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from cacheproxy.clock import SystemClock
from cacheproxy.configure import load
from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.install import install_secret, known_secret
from cacheproxy.replica import Joined, join, open_replica
from tests.support.fleet import linked

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.settings import Settings
    from tests.support.redis import RedisServer


def settings(redis: RedisServer, **sections: dict[str, object]) -> Settings:
    return load(None, environ={}, flags={"store": {"url": redis.url}, **sections})


async def joined(redis: RedisServer, folder: Path, **sections: dict[str, object]) -> Joined:
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    async with linked(redis) as (link, layout):
        return await join(link, layout, settings(redis, **sections), folder)


async def test_a_new_data_directory_gets_the_secret_of_the_first_one(redis: RedisServer, tmp_path: Path) -> None:
    first = await joined(redis, tmp_path / "one")
    second = await joined(redis, tmp_path / "two")
    assert first.secret == second.secret == install_secret(tmp_path / "two")
    assert (tmp_path / "two" / "install.key").stat().st_mode & 0o077 == 0
    assert first.secret.hex() not in repr(first)


async def test_a_directory_used_before_gives_its_secret_to_an_empty_engine_only(
    redis: RedisServer, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        install_secret(tmp_path / name)
    first = await joined(redis, tmp_path / "one")
    assert first.secret == install_secret(tmp_path / "one")
    with pytest.raises(ConfigError, match="another install than this data directory"):
        await joined(redis, tmp_path / "two")


async def test_a_secret_file_is_the_secret_with_or_without_the_engine(redis: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s" * 40)
    by_file: dict[str, object] = {"secret_file": str(file)}
    first = await joined(redis, tmp_path / "one", replicas=by_file)
    with pytest.raises(ConfigError, match=r"replicas\.secret_file"):
        await joined(redis, tmp_path / "without")
    other = tmp_path / "other"
    other.write_text("o" * 40)
    with pytest.raises(ConfigError, match="another secret"):
        await joined(redis, tmp_path / "two", replicas={"secret_file": str(other)})
    with pytest.raises(ConfigError, match="was used with another secret"):
        await joined(redis, tmp_path / "one", replicas={"secret_file": str(other)})
    await redis.kill()
    alone = await joined(redis, tmp_path / "three", replicas=by_file)
    assert (alone.secret, alone.apart) == (first.secret, False)


async def test_without_engine_or_secret_a_replica_is_apart_and_keeps_no_secret(
    redis: RedisServer, tmp_path: Path
) -> None:
    await redis.kill()
    alone = await joined(redis, tmp_path / "one")
    assert alone.apart
    assert known_secret(tmp_path / "one") is None
    with pytest.raises(ConfigError, match="does not know the virtual keys yet"):
        await joined(redis, tmp_path / "one", access={"mode": "keys"})


async def test_one_that_was_apart_gives_its_secret_where_there_is_none(redis: RedisServer, tmp_path: Path) -> None:
    await redis.kill()
    async with linked(redis) as (link, layout):
        alone = await join(link, layout, settings(redis), tmp_path)
        await redis.start()
        with pytest.raises(SharedUnavailable, match="which install"):
            await retried(alone)
        alone.patience_s = 0.0
        await retried(alone)
        assert not alone.apart
        assert not alone.rejoin.is_set()
        assert known_secret(tmp_path) == alone.secret
        assert (await joined(redis, tmp_path / "two")).secret == alone.secret


async def test_one_that_was_apart_starts_anew_where_the_others_have_another_secret(
    redis: RedisServer, tmp_path: Path
) -> None:
    await redis.kill()
    async with linked(redis) as (link, layout):
        (tmp_path / "late").mkdir()
        alone = await join(link, layout, settings(redis), tmp_path / "late")
        await redis.start()
        first = await joined(redis, tmp_path / "one")
        with pytest.raises(SharedUnavailable, match="starts anew"):
            await retried(alone)
        assert alone.rejoin.is_set()
        assert known_secret(tmp_path / "late") == first.secret
        again = await joined(redis, tmp_path / "late")
        assert (again.secret, again.apart) == (first.secret, False)


async def test_one_that_was_apart_lets_those_go_first_who_know_the_secret_of_an_emptied_engine(
    redis: RedisServer, tmp_path: Path
) -> None:
    for name in ("old", "newborn"):
        (tmp_path / name).mkdir()
    async with linked(redis) as (link, layout):
        old = await join(link, layout, settings(redis), tmp_path / "old")
        await redis.kill()
        newborn = await join(link, layout, settings(redis), tmp_path / "newborn")
        await redis.start()
        await redis.ask("FLUSHALL")
        with pytest.raises(SharedUnavailable, match="which install"):
            await retried(newborn)
        await retried(old)
        with pytest.raises(SharedUnavailable, match="starts anew"):
            await retried(newborn)
        assert known_secret(tmp_path / "newborn") == old.secret


@pytest.mark.parametrize("rights", ["~other:* +@all", "~* +@all -@write"])
async def test_a_user_who_lacks_rights_is_told_at_the_start(redis: RedisServer, tmp_path: Path, rights: str) -> None:
    await redis.ask("ACL", "SETUSER", "proxy", "on", ">secret", *rights.split())
    as_user = load(None, environ={}, flags={"store": {"url": redis.url.replace("redis://", "redis://proxy:secret@")}})
    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match="this user") as told:
            await open_replica(as_user, tmp_path, tmp_path, SystemClock(), stack)
    assert "secret" not in told.value.message


async def test_a_replica_serves_nothing_once_another_install_took_its_place(redis: RedisServer, tmp_path: Path) -> None:
    async with linked(redis) as (link, layout):
        one = await join(link, layout, settings(redis), tmp_path)
        await one.agree()
        await redis.ask("FLUSHALL")
        await joined(redis, tmp_path / "stranger")
        with pytest.raises(SharedUnavailable, match="another install"):
            await one.agree()


async def test_embedded_proxies_share_nothing(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        assert await open_replica(load(None, environ={}, flags={}), tmp_path, tmp_path, SystemClock(), stack) is None
        given = load(None, environ={}, flags={"replicas": {"secret_file": "x"}})
        with pytest.raises(ConfigError, match="only replicas share"):
            await open_replica(given, tmp_path, tmp_path, SystemClock(), stack)


async def retried(replica: Joined) -> None:
    """Agree, as a follower tries until the breaker lets it."""
    for _ in range(100):
        try:
            await replica.agree()
        except SharedUnavailable as exc:
            if exc.fault == "install":
                raise
            await asyncio.sleep(0.05)
        else:
            return
    raise AssertionError("the engine never answered")
