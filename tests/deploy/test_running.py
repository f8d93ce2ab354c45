"""What the files of a deployment name is run: health checks, Redis with its configuration, keys, the small model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from cacheproxy.federation.server import Serving
from tests.support.compose import read
from tests.support.dockerfile import stages
from tests.support.markdown import ROOT
from tests.support.markdown import read as read_document
from tests.support.polling import eventually_true
from tests.support.ports import free_port
from tests.support.process import OURS, serving
from tests.support.proxy import ENCODERS, Proxy, chat
from tests.support.rawhttp import Connection, Response, request_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
SERVICES = read()["services"]
EXACT = {"x-cacheproxy-tier": "exact"}
PROGRAM = Path(sys.executable).parent / "cacheproxy"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    subprocess.run([ROOT / "deploy/make-secrets", folder], check=True, capture_output=True, timeout=20)
    return folder


async def ended(*command: str | Path, environ: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command and return its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        env={"PATH": os.environ["PATH"], **(environ or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


# The proxy's own check.


async def healthy(port: int) -> tuple[int, str]:
    """Run the health check of the image and of the Compose file as an engine would, within a container of this port."""
    kind, program, *words = SERVICES["proxy"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", PROGRAM.name)
    environ = {**stages()[-1].environment, "CACHEPROXY_SERVER__PORT": str(port), "CACHEPROXY_DATA__DIR": "/nonexistent"}
    return await ended(PROGRAM, *words, environ=environ | {"PATH": os.environ["PATH"]})


async def kept(proxy: Proxy) -> bool:
    return (await proxy.ask(chat(), key="sk-caller", headers=EXACT)).outcome == "hit"


async def is_healthy(port: int) -> bool:
    return (await healthy(port))[0] == 0


async def test_the_health_check_fails_where_nothing_listens() -> None:
    code, said = await healthy(free_port())
    assert code == 1
    assert "no answer" in said


async def test_the_health_check_says_which_part_is_not_ready(upstream: ScriptedUpstream) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"status": "unavailable", "parts": {"store": "the disk is full", "encoder": "ok"}}'
        writer.write(b"HTTP/1.1 503 x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        code, said = await healthy(server.sockets[0].getsockname()[1])
    assert code == 1
    assert "store: the disk is full" in said
    assert "encoder" not in said


@pytest.mark.slow
async def test_a_proxy_with_the_images_and_the_files_settings_is_healthy_and_scraped(
    upstream: ScriptedUpstream, tmp_path: Path, secrets: Path
) -> None:
    told = {**stages()[-1].environment, **SERVICES["proxy"]["environment"]}
    ours = {name: value for name, value in told.items() if name.startswith("CACHEPROXY_")}
    ours = {name: value.replace("/run/secrets", str(secrets)) for name, value in ours.items()}
    del ours["CACHEPROXY_DATA__DIR"]
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(engine(tmp_path, secrets))
        there = ours["CACHEPROXY_STORE__URL"]
        ours["CACHEPROXY_STORE__URL"] = there.replace("redis:6379", f"127.0.0.1:{redis['REDIS_PORT']}")
        environ = {**ours, **only_ours()}
        server = await stack.enter_async_context(serving(tmp_path / "data", upstream.url, environ=environ))
        port = int(server.proxy.url.rpartition(":")[2])
        await eventually_true(lambda: is_healthy(port), "it has joined", within_s=30)
        assert await healthy(port) == (0, f"http://127.0.0.1:{port}/readyz: ready\n")
        assert (tmp_path / "data/replica-1/proxy.lock").exists()
        assert (tmp_path / "data/install.key").exists()
        token = (secrets / "read_token").read_text()
        for host in ("proxy:8081", server.proxy.admin_url.removeprefix("http://")):
            scraped = await get(server.proxy.admin_url, "/metrics", host, token)
            assert scraped.status == 200
            assert b"cacheproxy_requests_total" in scraped.body
        assert (await get(server.proxy.admin_url, "/metrics", "proxy:8081", "wrong")).status == 401
        assert (await get(server.proxy.admin_url, "/metrics", "elsewhere", token)).status == 421
        assert (await server.proxy.ask(chat(), key="sk-caller", headers=EXACT)).status == 200
        await eventually_true(lambda: kept(server.proxy), "its answer is kept", within_s=20)
        environ = {**ours, "CACHEPROXY_DATA__DIR": str(tmp_path / "data")}
        code, said = await ended(PROGRAM, "stats", "--json", environ=environ)
        assert code == 0, said
        assert await server.stop() == 0
        assert (await healthy(port))[0] == 1


def only_ours() -> dict[str, str]:
    """The checkout's exported encoder in place of the image's."""
    return {"CACHEPROXY_ENCODER__CACHE_DIR": OURS["CACHEPROXY_ENCODER__CACHE_DIR"]}


async def get(url: str, target: str, host: str, token: str) -> Response:
    async with await Connection.open(url) as connection:
        connection.send(request_bytes("GET", target, [("authorization", f"Bearer {token}")], host=host))
        return await connection.read_response("GET")


# Redis.


@asynccontextmanager
async def engine(tmp_path: Path, secrets: Path) -> AsyncIterator[dict[str, str]]:
    """Run Redis as the Compose file does, but for its port and its folder; yields what its health check is given."""
    service, port = SERVICES["redis"], str(free_port())
    mounted = {target: ROOT / source for source, target, _ in (v.split(":") for v in service["volumes"] if v[0] == ".")}
    shell, script = service["entrypoint"]
    [config] = service["command"]
    (tmp_path / "redis").mkdir()
    own = tmp_path / "redis.conf"  # /data is the volume's place, which is not on this machine
    own.write_text(mounted[config].read_text().replace("\ndir /data\n", f"\ndir {tmp_path / 'redis'}\n"))
    environ = {
        "PATH": os.environ["PATH"],
        "REDIS_PASSWORD_FILE": str(secrets / "redis_password"),
        "REDIS_PORT": port,
        "TMPDIR": str(tmp_path),
    }
    process = await asyncio.create_subprocess_exec(
        *(shell, str(mounted[script]), str(own), "--port", port),
        env=environ,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(20):
            while (await asked(environ))[0]:
                assert process.returncode is None
                await asyncio.sleep(0.05)
        command_line = command_line_of(process.pid)
        assert b"redis-server" in command_line
        assert (secrets / "redis_password").read_bytes() not in command_line
        yield environ
    finally:
        process.terminate()
        await process.wait()


def command_line_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def asked(environ: dict[str, str]) -> tuple[int, str]:
    """Run the health check of Redis."""
    kind, shell, _, *words = SERVICES["redis"]["healthcheck"]["test"]
    assert kind == "CMD"
    return await ended(shell, ROOT / "deploy/redis-start.sh", *words, environ=environ)


async def test_redis_runs_with_its_configuration_and_its_password(tmp_path: Path, secrets: Path) -> None:
    async with engine(tmp_path, secrets) as environ:
        password = (secrets / "redis_password").read_text()
        async with Redis(port=int(environ["REDIS_PORT"]), password=password, decode_responses=True) as redis:
            told = {
                name: (await redis.config_get(name))[name] for name in ("appendonly", "maxmemory", "maxmemory-policy")
            }
            assert told == {"appendonly": "yes", "maxmemory": str(4 * 1024**3), "maxmemory-policy": "noeviction"}
        async with Redis(port=int(environ["REDIS_PORT"])) as redis:
            with pytest.raises(AuthenticationError):
                await redis.ping()
        other = tmp_path / "other"
        other.write_text("wrong")
        assert (await asked({**environ, "REDIS_PASSWORD_FILE": str(other)}))[0] != 0
    assert (await asked(environ))[0] != 0


# The rest.


async def test_the_balancers_file_is_one_that_haproxy_takes() -> None:
    code, said = await ended("haproxy", "-c", "-f", ROOT / "deploy/haproxy.cfg")
    assert code == 0, said
    warnings = [line for line in said.splitlines() if "WARNING" in line]
    assert all("could not resolve address 'proxy'" in line for line in warnings), warnings


async def test_keys_of_the_federation_are_those_that_its_services_name(tmp_path: Path) -> None:
    [line] = [
        line
        for block in read_document("docs/deployment.md").blocks("sh")
        for line in block.splitlines()
        if "federated keys" in line
    ]
    words = line.split("run --rm superlink ")[1].replace("/var/lib/federated", str(tmp_path)).split()
    code, said = await ended(PROGRAM, *words)
    assert code == 0, said
    options = options_of("superlink", tmp_path)
    Serving(
        out=Path(options["--dir"][0]),
        host=options["--host"][0],
        port=free_port(),
        certificates=Path(options["--certificates"][0]),
        nodes=tuple(map(Path, options["--node"])),
        key=Path(options["--key"][0]),
    ).check()
    for name in ("node-1", "node-2"):
        told = options_of(name, tmp_path)
        assert {told["--node-key"][0], told["--root-certificates"][0]} <= made_in(tmp_path / "keys")
        assert told["--superlink"] == [f"superlink:{options['--port'][0]}"]


def made_in(folder: Path) -> set[str]:
    return {str(file) for file in folder.iterdir()}


def options_of(name: str, folder: Path) -> dict[str, list[str]]:
    """Return the options of a service's command, its volume put into a folder."""
    found: dict[str, list[str]] = {}
    for word in SERVICES[name]["command"]:
        option, given, value = word.replace("/var/lib/federated", str(folder)).partition("=")
        if given:
            found.setdefault(option, []).append(value)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_small_model_answers_and_keeps_nothing(tmp_path: Path) -> None:
    service = SERVICES["small-model"]
    pack = next(volume for volume in service["volumes"] if "small-model:/etc" in volume).split(":")
    words = [word.replace(pack[1], str(ROOT / pack[0])) for word in service["command"]]
    told = {name: value for name, value in stages()[-1].environment.items() if name.startswith("CACHEPROXY_")}
    environ = told | only_ours() | {"CACHEPROXY_DATA__DIR": str(tmp_path), "CACHEPROXY_SERVER__HOST": "127.0.0.1"}
    environ["CACHEPROXY_UPSTREAM__LOCAL_CACHE_DIR"] = str(ENCODERS.parent)
    at = words.index("--upstream")
    upstream, rest = words[at + 1], words[1:at] + words[at + 2 :]
    async with serving(tmp_path, upstream, *rest, environ=environ) as server:

        async def is_ready() -> bool:
            return (await get(server.proxy.admin_url, "/readyz", "localhost", "-")).status == 200

        await eventually_true(is_ready, "the small model is loaded", within_s=200)
        for _ in range(2):
            answered = await server.proxy.ask({**chat("Say yes."), "max_tokens": 2}, key=None)
            assert (answered.status, answered.outcome) == (200, "bypass")
