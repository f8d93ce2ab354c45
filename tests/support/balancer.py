"""HAProxy with the configuration that is shipped, before proxies of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.markdown import ROOT
from tests.support.polling import eventually_true
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.rawhttp import Connection, Response, request_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

_TRIES = 3
SERVED_BY = "x-served-by"
_AFFINITY = re.compile(r"    balance hash .*\n    hash-type .*\n(    #.*\n)?    hash-balance-factor .*\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancer(Proxy):
    """A running balancer; `url` is its data port, `admin_url` the one for health and figures."""

    pid: int

    async def look(self, target: str) -> Response:
        """GET something of the port inside."""
        connection = await Connection.open(self.admin_url)
        connection.send(request_bytes("GET", target))
        async with connection:
            return await connection.read_response("GET")


def configuration(folder: Path, ports: Sequence[int], port: int, inside: int, *, affinity: bool = True) -> Path:
    """Write the shipped file with this machine's addresses, and a header that tells who served; return it."""
    text = (ROOT / "deploy/haproxy.cfg").read_text(encoding="utf-8")
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}").replace("bind :8404", f"bind 127.0.0.1:{inside}")
    # Ids stay with their server, and keys go by ids.
    servers = "".join(f"    server proxy{n} 127.0.0.1:{at} id {n}\n" for n, at in enumerate(ports, 1))
    text, found = re.subn(r"    server-template .*\n", servers, text)
    assert found == 1
    text = text.replace("    http-reuse safe\n", f"    http-reuse safe\n    http-response set-header {SERVED_BY} %s\n")
    if not affinity:
        text, found = _AFFINITY.subn("    balance roundrobin\n", text)
        assert found == 1
    file = folder / "haproxy.cfg"
    file.write_text(text, encoding="utf-8")
    return file


@asynccontextmanager
async def balancing(
    folder: Path, ports: Sequence[int], *, affinity: bool = True, within_s: float = 20.0
) -> AsyncIterator[Balancer]:
    """Run HAProxy before the proxies on these ports until the block ends; enters when one of them is ready."""
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("haproxy is not installed")
    for _ in range(_TRIES):
        port, inside = free_port(), free_port()
        file = configuration(folder, ports, port, inside, affinity=affinity)
        process = await asyncio.create_subprocess_exec(
            *(program, "-db", "-q", "-f", str(file)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.5)
            continue  # somebody took one of the ports meanwhile
        break
    balancer = Balancer(url=f"http://127.0.0.1:{port}", admin_url=f"http://127.0.0.1:{inside}", pid=process.pid)

    async def ready() -> bool:
        assert process.returncode is None, "haproxy ended"
        try:
            return (await balancer.look("/healthz")).status == 200
        except (OSError, EOFError):
            return False

    try:
        await eventually_true(ready, "the balancer has a proxy", within_s)
        yield balancer
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
