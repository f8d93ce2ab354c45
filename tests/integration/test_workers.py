"""`cacheproxy serve --workers N` as its user starts it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.polling import eventually, eventually_true
from tests.support.ports import free_port
from tests.support.process import ServerProcess, serving
from tests.support.proxy import Proxy, chat
from tests.support.redis import redis_server

if TYPE_CHECKING:
    from tests.support.upstream import ScriptedUpstream

PROGRAM = Path(sys.executable).parent / "cacheproxy"
EXACT = {"x-cacheproxy-tier": "exact"}


@pytest.mark.parametrize("store", ["", "memory://", "sqlite:///entries.db"])
async def test_more_than_one_on_an_embedded_store_is_refused_in_one_line(tmp_path: Path, store: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cacheproxy", "serve", "--workers", "2", "--port", "0", "--data-dir", "data"),
        *(("--store", store) if store else ()),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        said, _ = await process.communicate()
    assert process.returncode == 2
    assert said.decode().startswith("cacheproxy: server.workers: 2 processes cannot share a store")
    assert "--store redis://127.0.0.1:6379/0" in said.decode()
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def started(server: ServerProcess) -> dict[int, dict[str, Any]]:
    """What each worker told last when it began to serve, by its number."""
    return {event["worker"]: event for event in server.events if event["event"] == "server_started"}


async def answered_by(proxy: Proxy, admin: list[str], key: str) -> set[str]:
    """Ask one kept question on many connections; return the admin ports of those that answered by a hit.

    A replica that was kept from the processor for longer than its lease answers by a miss: nothing is lost by that.
    """
    before = [await hits(url) for url in admin]
    for _ in range(40):
        assert (await proxy.ask(chat(), key=key, headers=EXACT)).status == 200
    after = [await hits(url) for url in admin]
    return {url for url, was, now in zip(admin, before, after, strict=True) if now > was}


async def all_ready(admin: list[str]) -> bool:
    told = [await Proxy(url=url, admin_url=url).call("GET", "/readyz") for url in admin]
    return all(one.status == 200 for one in told)


async def hits(admin_url: str) -> float:
    told = await Proxy(url=admin_url, admin_url=admin_url).call("GET", "/metrics")
    lines = [line for line in told.body.decode().splitlines() if line.startswith("cacheproxy_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'outcome="hit"' in line)


async def ran(*words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(PROGRAM, *words, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.asyncio(loop_scope="module")
async def test_two_workers_serve_one_cache_on_one_port(tmp_path: Path, upstream: ScriptedUpstream, key: str) -> None:
    admin_port = free_port()
    words = ("--workers", "2", "--admin-port", str(admin_port))
    async with redis_server() as redis, serving(tmp_path, upstream.url, "--store", redis.url, *words) as server:
        await eventually(lambda: len(started(server)) == 2, "both serve", within_s=60)
        assert {told["port"] for told in started(server).values()} == {int(server.proxy.url.rpartition(":")[2])}
        assert {n: told["admin_port"] for n, told in started(server).items()} == {0: admin_port, 1: admin_port + 1}
        assert {(tmp_path / f"replica-{n}/proxy.lock").exists() for n in (1, 2)} == {True}
        admin = [f"http://127.0.0.1:{admin_port + n}" for n in (0, 1)]

        await eventually_true(lambda: all_ready(admin), "both are ready", within_s=30)

        # What one keeps, the other serves.
        await eventually_true(lambda: both(server.proxy, admin, key), "both answer by hits", within_s=40)

        # A command with the same data directory finds one of them, and another parent is refused.
        code, said = await ran("stats", "--json", "--data-dir", str(tmp_path))
        assert (code, said[:1]) == (0, "{")
        assert (await ran("serve", "--data-dir", str(tmp_path), "--port", "0"))[0] == 2

        # A worker that is killed is started again; the other one serves meanwhile.
        [killed] = [told for n, told in started(server).items() if n == 1]
        os.kill(pid_of(server.pid, "--worker 1 "), signal.SIGKILL)
        await eventually(lambda: "worker_ended" in server.said, "it is seen to be gone", within_s=10)
        assert await answered_by(server.proxy, admin[:1], key) == {admin[0]}
        await eventually(lambda: started(server)[1] != killed, "it serves again", within_s=60)
        await eventually_true(lambda: both(server.proxy, admin, key), "both answer again", within_s=40)

        assert await server.stop() == 0
        assert [event["event"] for event in server.events].count("worker_ended") == 1


async def both(proxy: Proxy, admin: list[str], key: str) -> bool:
    return await answered_by(proxy, admin, key) == set(admin)


def pid_of(parent: int, words: str) -> int:
    """Return the child of a process whose command line holds some words."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in children}
    [found] = [pid for pid, line in lines.items() if words in line]
    return found
