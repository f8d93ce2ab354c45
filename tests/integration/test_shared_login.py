"""As whom the engine is spoken to: TLS, a user with no more rights than needed, Sentinels, and secrets that stay so."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cacheproxy.clock import SystemClock
from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.federation.keys import AUTHORITY, CERTIFICATE, CERTIFICATE_KEY, make_keys
from cacheproxy.settings import Replicas, Store
from cacheproxy.shared.link import Link
from tests.support.markdown import read
from tests.support.polling import eventually
from tests.support.ports import HOST, free_port
from tests.support.redis import redis_server
from tests.support.redis_groups import sentinel_group
from tests.support.seats import seated

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis import RedisServer

PASSWORD = "s3cret:word/@"
QUOTED = "s3cret%3Aword%2F%40"


def link_to(url: str, **replicas: object) -> Link:
    given = {"timeout_ms": 2000, **replicas}  # a busy machine is not what is tested
    return Link(Store(url=url), Replicas(**given), SystemClock())  # type: ignore[arg-type]  # each test's own


async def test_tls_checks_the_server_against_the_authority_that_is_given(tmp_path: Path) -> None:
    make_keys(tmp_path, [HOST], ["one"])
    port = free_port()
    flags = ("--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(tmp_path / AUTHORITY))
    files = ("--tls-cert-file", str(tmp_path / CERTIFICATE), "--tls-key-file", str(tmp_path / CERTIFICATE_KEY))
    async with redis_server(*flags, *files):
        trusted = link_to(f"rediss://{HOST}:{port}", ca_file=str(tmp_path / AUTHORITY), timeout_ms=2000)
        async with trusted as link:
            assert await link.call("PING") == b"PONG"
        with pytest.raises(ConfigError, match="certificate"):
            async with link_to(f"rediss://{HOST}:{port}"):
                pass


async def test_a_certificate_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"replicas\.ca_file"):
        link_to("rediss://127.0.0.1", ca_file=str(tmp_path / "missing.crt"))


async def test_the_rights_that_the_documentation_names_are_enough(redis: RedisServer) -> None:
    [rights] = [span for span in read("docs/operations.md").spans if span.startswith("~{PREFIX:")]
    words = rights.replace("PREFIX", "cacheproxy").split()
    await redis.ask("ACL", "SETUSER", "proxy", "on", f">{PASSWORD}", *words)
    async with seated(f"redis://proxy:{QUOTED}@{HOST}:{redis.port}") as one:
        await one.purge(0, "1")
        await eventually(lambda: len(one.applied[0]) == 1, "it follows")
        assert [member.replica for member in await one.members.listed()] == [one.members.replica]
        with pytest.raises(SharedUnavailable) as refused:
            await one.link.call("SET", "somebody-elses", "1")
        assert refused.value.fault == "NOPERM"


async def test_connections_say_whose_they_are(redis: RedisServer) -> None:
    async with link_to(redis.url) as link:
        await link.call("PING")
        assert b"name=cacheproxy-cacheproxy-" in await redis.ask("CLIENT", "LIST")


async def test_passwords_are_in_no_message_log_or_representation(redis: RedisServer) -> None:
    url = f"redis://proxy:{QUOTED}@{HOST}:{redis.port}"
    told: list[str] = []
    with capture_logs() as logs:
        link = link_to(url)
        told.append(repr(link) + repr(vars(link)))
        with contextlib.suppress(ConfigError, SharedUnavailable):
            async with link:
                await link.call("PING")
        for broken in (f"redis://{HOST}:1", url):
            try:
                async with link_to(broken) as other:
                    await other.call("PING")
            except (ConfigError, SharedUnavailable) as exc:
                told.append(repr(exc) + str(exc) + repr(exc.__cause__) + repr(exc.__context__))
    assert len(told) == 3
    assert "s3cret" not in " ".join((*told, *map(str, logs)))


async def test_sentinels_without_that_service_stop_the_start() -> None:
    async with sentinel_group() as group:
        with pytest.raises(ConfigError, match="not watched by these Sentinels"):
            async with link_to(group.url.replace("/cache/", "/another/")):
                pass
