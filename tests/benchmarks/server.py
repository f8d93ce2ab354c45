"""The processes of a benchmark: the scripted backend and the proxy, each on its own, watched from outside."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SERVE = ("serve", "--port", "0", "--admin-port", "0", "--log-format", "json")
_STAGE = re.compile(r'cacheproxy_stage_seconds_sum\{stage="([^"]+)"\} ([0-9.e+-]+)')
_BUCKET = re.compile(r'cacheproxy_loop_lag_seconds_bucket\{le="([^"]+)"\} ([0-9.]+)')


class Process:
    """A server process with the port it announced."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, admin_port: int) -> None:
        self._process = process
        self.port = port
        self.admin_port = admin_port

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU time of all its threads since its start."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S

    def rss_mb(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def loop_lag(self) -> dict[str, float]:
        """Cumulative counts of the event loop's lag by upper bound in seconds."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=10) as answer:
            return {bound: float(count) for bound, count in _BUCKET.findall(answer.read().decode())}

    def stages_s(self) -> dict[str, float]:
        """Seconds spent in each stage of a request, since its start."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=10) as answer:
            return {stage: float(total_s) for stage, total_s in _STAGE.findall(answer.read().decode())}


@asynccontextmanager
async def backend() -> AsyncIterator[Process]:
    """Start the scripted backend in a process of its own."""
    async with _started([sys.executable, "-m", "tests.benchmarks.backend"]) as (process, said):
        yield Process(process, int(said["port"]), 0)


@asynccontextmanager
async def proxy(upstream_port: int, data_dir: Path, encoders: Path, precision: str = "fp32") -> AsyncIterator[Process]:
    """Start `cacheproxy serve` in a process of its own, with its defaults but for the encoder's precision."""
    command = [sys.executable, "-m", "cacheproxy", *SERVE]
    command += ["--data-dir", str(data_dir), "--upstream", f"http://127.0.0.1:{upstream_port}/v1"]
    async with _started(command, _environ(encoders, precision)) as (process, said):
        yield Process(process, int(said["port"]), int(said["admin_port"]))


@asynccontextmanager
async def timed_proxy(
    checkout: Path, upstream_port: int, data_dir: Path, encoders: Path, calls: Path, precision: str = "fp32"
) -> AsyncIterator[Process]:
    """Start the proxy of a checkout by its own `.venv`; `calls` gets when its models were at work, once it ended."""
    script = Path(__file__).with_name("overhead_proxy.py")
    command = [str(checkout / ".venv" / "bin" / "python"), "-P", str(script), str(calls), *SERVE]
    command += ["--data-dir", str(data_dir), "--upstream", f"http://127.0.0.1:{upstream_port}/v1"]
    async with _started(command, _environ(encoders, precision), checkout) as (process, said):
        yield Process(process, int(said["port"]), int(said["admin_port"]))


def _environ(encoders: Path, precision: str) -> dict[str, str]:
    return {"CACHEPROXY_ENCODER__CACHE_DIR": str(encoders), "CACHEPROXY_ENCODER__PRECISION": precision}


@asynccontextmanager
async def _started(
    command: list[str], environ: dict[str, str] | None = None, folder: Path | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **(environ or {})}, cwd=folder, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        async for line in process.stderr:
            lines.append(line.decode())
            said = json.loads(line) if line.startswith(b"{") else {}
            if said.get("event") == "server_started":
                drain = asyncio.ensure_future(process.stderr.read())
                yield process, said
                drain.cancel()
                break
        else:
            raise RuntimeError(f"{command[2]} did not start:\n" + "".join(lines[-20:]))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
