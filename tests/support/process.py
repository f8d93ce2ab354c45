"""`cacheproxy serve` as a real process: started, asked, signalled, killed, and its logs kept."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.proxy import ENCODERS, Proxy
from tests.support.rawhttp import HOST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import Self

ROOT = Path(__file__).resolve().parents[2]
START_S = 150.0
"""Longest wait for a start; the first one in a checkout exports the encoder."""


OURS = {
    "CACHEPROXY_ENCODER__CACHE_DIR": str(ENCODERS),
    "CACHEPROXY_ADMIN__HOSTS": HOST,
    # Tests may share their cores with others: what is late then is no overload, and no verifier that hangs.
    "CACHEPROXY_SERVER__MAX_LAG_MS": "0",
    "CACHEPROXY_VERIFIER__TIMEOUT_MS": "2000",
}


class ServerExited(Exception):
    """The process ended before it served; holds its exit code and what it said."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"exit code {code}: {said[-2000:]}")
        self.code = code
        self.said = said


class ServerProcess:
    """One running `python -m cacheproxy serve`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: list[bytes] = []
        self._start_told: dict[str, Any] | None = None
        self._started_or_ended = asyncio.Event()
        self._readers = [asyncio.create_task(self._read(pipe)) for pipe in (process.stdout, process.stderr) if pipe]

    @classmethod
    async def start(
        cls,
        data_dir: Path,
        upstream_url: str,
        *flags: str,
        environ: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> Self:
        """Start on free ports and return once it serves. Raises ServerExited when it ends instead.

        `under` is a command that runs another one, such as `nice`.
        """
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(*under, sys.executable, "-m", "cacheproxy", "serve", "--port", "0", "--admin-port", "0"),
            *("--data-dir", str(data_dir), "--upstream", upstream_url, "--log-format", "json", *flags),
            cwd=ROOT,
            env={**kept, "HOME": str(data_dir), **OURS, **(environ or {})},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        server = cls(process)
        try:
            async with asyncio.timeout(START_S):
                await server._started_or_ended.wait()
        except TimeoutError:
            await server.kill()
            raise
        if server._start_told is None:
            raise ServerExited(await server.wait(), server.said)
        return server

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._process.returncode is not None

    @property
    def memory_bytes(self) -> int:
        """What it holds in memory (resident set)."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def cpu_s(self) -> float:
        """Processor time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def said(self) -> str:
        """Everything it wrote to stdout and stderr so far."""
        return b"".join(self._lines).decode("utf-8", "backslashreplace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its log so far; every line must be a JSON object with an event."""
        events = [json.loads(line) for line in self.said.splitlines()]
        assert all(isinstance(event, dict) and event["event"] for event in events)
        return events

    @property
    def proxy(self) -> Proxy:
        """The proxy it runs."""
        told = self._start_told or {}
        return Proxy(url=f"http://127.0.0.1:{told['port']}", admin_url=f"http://127.0.0.1:{told['admin_port']}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def wait(self, within_s: float = 20.0) -> int:
        """Wait for its end and return the exit code."""
        async with asyncio.timeout(within_s):
            code = await self._process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def stop(self) -> int:
        """Ask it to end, wait, and return the exit code."""
        self.send(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        """End it as a crash would."""
        if self._process.returncode is None:
            self._process.kill()
        await self.wait()

    async def _read(self, pipe: asyncio.StreamReader) -> None:
        async for line in pipe:
            self._lines.append(line)
            if self._start_told is None and b'"server_started"' in line:
                self._start_told = json.loads(line)
                self._started_or_ended.set()
        self._started_or_ended.set()


@asynccontextmanager
async def serving(
    data_dir: Path,
    upstream_url: str,
    *flags: str,
    environ: Mapping[str, str] | None = None,
    under: Sequence[str] = (),
) -> AsyncIterator[ServerProcess]:
    """Run a server until the block ends, whatever happens in it."""
    server = await ServerProcess.start(data_dir, upstream_url, *flags, environ=environ, under=under)
    try:
        yield server
    finally:
        await server.kill()
