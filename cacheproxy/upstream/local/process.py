"""The parent's side of the embedded model: starts the child, restarts it when it dies, ends it with the proxy.

The parent makes the listening socket, in a directory that only this user may enter, and every child inherits it:
requests sent while a model loads, or between a crash and the restart, wait in the socket's backlog for as long as their
first-byte deadline allows. When no child can ever start (exit code 2) the socket is closed: requests fail at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from cacheproxy.upstream.local import CONTEXT_TOKENS, QUEUE
from cacheproxy.upstream.local.weights import find_gguf, require_libraries

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

log = structlog.get_logger()

_CONFIG_EXIT = 2
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# No look at the model hub, no threads but our own, no progress bars on our terminal.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
_BACKLOG = 1024
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class LocalModel:
    """The embedded model as a backend on `socket_path` (HTTP, OpenAI's dialect). Use it as an async context manager.

    Entering starts the child and returns without waiting for the model; `health` says when it is ready.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        context_tokens: int = CONTEXT_TOKENS,
        queue: int = QUEUE,
        ready_timeout_s: float = 300.0,
        stop_timeout_s: float = 5.0,
    ) -> None:
        self._options = ("--context-tokens", str(context_tokens), "--queue", str(queue), "--data-dir", str(data_dir))
        self._ready_timeout_s = ready_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._folder = Path()
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._problem = "the embedded model was not started"
        self.socket_path = Path()
        self.pid: int | None = None
        self.restarts = 0

    async def __aenter__(self) -> LocalModel:
        """Start the child. Raises ConfigError, with the command that helps, when the model is not installed."""
        require_libraries()
        find_gguf()
        # Not in the data directory: a Unix socket's path holds at most 107 bytes. mkdtemp's directories are 0700.
        self._folder = Path(tempfile.mkdtemp(prefix="cacheproxy-"))
        self.socket_path = self._folder / "local.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.socket_path))
        self._socket.listen(_BACKLOG)
        self._problem = "the embedded model is starting"
        self._task = asyncio.create_task(self._supervise(self._socket), name="local-model")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._close_socket()
        shutil.rmtree(self._folder, ignore_errors=True)

    def health(self) -> str:
        """Return "" when the model answers, else what is wrong."""
        return self._problem

    async def _supervise(self, listener: socket.socket) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            code = await self._run(listener)
            if code == _CONFIG_EXIT:
                self._close_socket()
                return
            if time.monotonic() - began > 2 * _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            self._problem = f"the embedded model exited with code {code}; it is started again"
            log.error("local_model_exited", code=code, pause_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self.restarts += 1

    async def _run(self, listener: socket.socket) -> int:
        """Run one child to its end and return its exit code; on cancellation, end it first."""
        log.info("local_model_starting")
        process = await _spawn(listener.fileno(), self._options)
        self.pid = process.pid
        try:
            await self._listen(process)
            return await process.wait()
        finally:
            self.pid = None
            await _end(process, self._stop_timeout_s)

    async def _listen(self, process: Process) -> None:
        """Log what the child says until it ends, or until it is not ready in time."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._ready_timeout_s) as deadline:
                async for said in _events(process):
                    if said.get("event") == "local_model_loaded":
                        deadline.reschedule(None)
                        self._problem = ""
                        self._log_ready(said, seconds=round(time.monotonic() - began, 2), pid=process.pid)
                    else:
                        self._log(said)
        except TimeoutError:
            log.error("local_model_late", after_s=self._ready_timeout_s)  # noqa: TRY400 - a deadline, no fault in here
            process.kill()

    def _log_ready(self, said: dict[str, Any], **measured: float) -> None:
        log.info("local_model_ready", precision=said.get("precision"), load_s=said.get("load_s"), **measured)

    def _log(self, said: dict[str, Any]) -> None:
        if said.get("event") == "local_model_refused":
            self._problem = str(said.get("problem"))
        fields = {key: value for key, value in said.items() if key not in ("event", "level")}
        log.log(_LEVELS.get(str(said.get("level")), logging.INFO), str(said.get("event")), **fields)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.socket_path.unlink(missing_ok=True)


async def _spawn(listener: int, options: tuple[str, ...]) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cacheproxy.upstream.local",
        "--fd",
        str(listener),
        *options,
        stdin=asyncio.subprocess.PIPE,  # never written: it ends when this process does, which ends the child
        stdout=asyncio.subprocess.PIPE,
        pass_fds=(listener,),
        start_new_session=True,  # a terminal's Ctrl-C is for the proxy, which still has answers to finish
        env=os.environ | _ENVIRONMENT,
    )


async def _events(process: Process) -> AsyncIterator[dict[str, Any]]:
    """Yield the child's log, leaving out lines that are none of its own."""
    assert process.stdout is not None  # as asked in _spawn
    async for line in process.stdout:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            yield msgspec.json.decode(line, type=dict[str, Any])


async def _end(process: Process, timeout_s: float) -> None:
    """End the child: first by asking, after `timeout_s` by force."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.stdin is not None:
        process.stdin.close()
