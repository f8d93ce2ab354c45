"""The processes of a bench: the scripted backend and a proxy of its own, each beside the generator, ended with it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from cacheproxy.bench.upstream import Pace

_START_S = 300.0
"""Longest wait for a start; the first one on a machine prepares the encoder."""
_LEAVE_S = 20.0
_LAST_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process that serves."""

    pid: int
    port: int
    admin_port: int = 0

    @property
    def url(self) -> str:
        """The base URL of its API."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def admin_url(self) -> str:
        """Where its metrics are; "" where it has none."""
        return f"http://127.0.0.1:{self.admin_port}" if self.admin_port else ""


@asynccontextmanager
async def scripted(pace: Pace, seed: int) -> AsyncIterator[Started]:
    """Run the scripted backend in a process of its own until the block ends."""
    words = [f"--{name.replace('_', '-')}={value:g}" for name, value in pace.told().items()]
    async with _running(["bench", "upstream", "--port", "0", "--seed", str(seed), *words]) as started:
        yield started


@asynccontextmanager
async def own_proxy(upstream_url: str, data_dir: Path, encoders: Path, more: Sequence[str]) -> AsyncIterator[Started]:
    """Run `cacheproxy serve` with its defaults, and `more` flags, until the block ends. Raises ConfigError.

    Its data is kept in `data_dir`; prepared encoders are used from, and kept in, `encoders`.
    """
    words = ["serve", "--port", "0", "--admin-port", "0", "--log-format", "json", "--data-dir", str(data_dir)]
    environ = {"CACHEPROXY_ENCODER__CACHE_DIR": str(encoders)}
    async with _running([*words, "--upstream", upstream_url, *more], environ) as started:
        yield started


@asynccontextmanager
async def _running(words: Sequence[str], environ: dict[str, str] | None = None) -> AsyncIterator[Started]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cacheproxy",
        *words,
        env={**os.environ, **(environ or {})},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    drain: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(_START_S):
            said = await _announced(process, words[0])
        drain = asyncio.create_task(_discard(process))
        yield Started(pid=process.pid, port=said["port"], admin_port=said.get("admin_port", 0))
    finally:
        await _end(process)
        if drain is not None:
            drain.cancel()


async def _announced(process: asyncio.subprocess.Process, name: str) -> dict[str, Any]:
    assert process.stderr is not None
    lines: list[str] = []
    async for line in process.stderr:
        lines.append(line.decode(errors="replace"))
        if b'"server_started"' in line:
            said: dict[str, Any] = json.loads(line)
            return said
    raise ConfigError(f"cacheproxy {name} did not start:\n{''.join(lines[-_LAST_LINES:])}")


async def _discard(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()
