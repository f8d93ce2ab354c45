"""One secret for all replicas: whoever comes first gives it, and nobody of another install gets in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.clock import SystemClock
from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.settings import Replicas, Store
from cacheproxy.shared.installs import Installs, fingerprint, secret_of
from cacheproxy.shared.layout import Layout
from cacheproxy.shared.link import Link
from tests.support.chaos import ChaosProxy
from tests.support.fleet import linked

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis import RedisServer

ONE, OTHER = b"1" * 32, b"2" * 32


async def test_who_comes_later_gets_the_secret_of_who_came_first(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        installs = Installs(link, layout, by_file=False)
        assert await installs.agree(ONE, ours=False) == ONE
        assert await installs.agree(OTHER, ours=False) == ONE
        assert await installs.agree(ONE, ours=True) == ONE


async def test_a_data_directory_of_another_install_is_refused(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        installs = Installs(link, layout, by_file=False)
        await installs.agree(ONE, ours=True)
        with pytest.raises(ConfigError, match="another install than this data directory"):
            await installs.agree(OTHER, ours=True)


async def test_with_a_file_the_engine_never_sees_the_secret(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        installs = Installs(link, layout, by_file=True)
        assert await installs.agree(ONE, ours=True) == ONE
        kept = await redis.ask("HGETALL", layout.key("c", "install"))
        assert kept == {b"mark": fingerprint(ONE).encode(), b"secret": b""}
        with pytest.raises(ConfigError, match=r"replicas\.secret_file: .* another secret"):
            await installs.agree(OTHER, ours=False)
        with pytest.raises(ConfigError, match="have their secret from a file"):
            await Installs(link, layout, by_file=False).agree(OTHER, ours=False)


async def test_a_start_waits_for_a_slow_engine_longer_than_a_request_would(redis: RedisServer) -> None:
    async with ChaosProxy(redis.port) as way:
        way.weather.delay_s = 0.1
        store = Store(url=f"redis://127.0.0.1:{way.port}")
        async with Link(store, Replicas(timeout_ms=75), SystemClock()) as link:
            layout = Layout("cacheproxy", link.shards)
            assert await Installs(link, layout, by_file=False).agree(ONE, ours=False) == ONE
            with pytest.raises(SharedUnavailable):
                await link.call("GET", layout.key("c", "install"))


async def test_without_the_engine_nothing_is_agreed(redis: RedisServer) -> None:
    async with linked(redis) as (link, layout):
        await redis.kill()
        with pytest.raises(SharedUnavailable):
            await Installs(link, layout, by_file=False).agree(ONE, ours=False)


def test_a_secret_file_is_read_without_blanks_at_its_ends_and_must_be_long(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("ab" * 32)
    secret = secret_of(file)
    file.write_text(f"{'ab' * 32}\n")
    assert secret_of(file) == secret
    assert len(secret) == 32
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="fewer than 32 bytes") as told:
        secret_of(file)
    assert "short" not in told.value.message.replace(str(file), "")
    with pytest.raises(ConfigError, match="cannot be read"):
        secret_of(tmp_path / "missing")
