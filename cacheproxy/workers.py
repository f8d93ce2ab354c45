"""Several proxies on one machine, as one command: processes on one data port, each with files of its own.

The parent serves nothing. It reserves the port, starts the workers, hands signals on to them, and starts one that died
again. What they keep is shared by the engine that `store.url` names: the parent takes no part in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheproxy.background import usable_cores
from cacheproxy.clock import SystemClock
from cacheproxy.errors import ConfigError
from cacheproxy.http.listener import bind
from cacheproxy.install import claim, open_data_dir
from cacheproxy.shared.address import is_shared, parse
from cacheproxy.shared.layout import Layout
from cacheproxy.store.open import open_store
from cacheproxy.upstream.open import clients

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cacheproxy.settings import Settings

log = structlog.get_logger()

SHORT_S = 30.0
"""A worker that lived for less waits longer before it is started again."""
_FIRST_WAIT_S = 0.5
_MOST_WAIT_S = 30.0
_WRONG_CONFIGURATION = 2
_MOST_PORT = 65535
_PR_SET_PDEATHSIG = 1
# Looked up here, since little may be done between fork and exec.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """How one worker is started."""

    index: int
    command: tuple[str, ...]
    environ: Mapping[str, str]


async def serve(settings: Settings, words: Sequence[str]) -> int:
    """Run `server.workers` proxies until SIGTERM or SIGINT; return the exit code. Raises ConfigError.

    `words` is the command line that this process was started with, after the program's name. The workers end with the
    parent, whatever ends it.
    """
    check(settings)
    # What each worker would find wrong by itself, and say: once is enough.
    parse(settings.store.url)
    Layout(settings.store.prefix, shards=1)
    clients(settings)
    with ExitStack() as stack:
        if not settings.data.shared:  # else others have folders in it, too
            stack.enter_context(claim(open_data_dir(settings)))
        server = settings.server
        # Without SO_REUSEPORT first: with it, a port that others serve with it could be had as well.
        bind(server.host, server.port, "server.host, server.port").close()
        reserved = stack.enter_context(
            bind(server.host, server.port, "server.host, server.port", shared=True, listen=False)
        )
        port = reserved.getsockname()[1]
        return await supervise([_worker(settings, words, port, index) for index in range(server.workers)])


def check(settings: Settings) -> None:
    """Raise ConfigError where several processes cannot serve one cache."""
    server, workers = settings.server, settings.server.workers
    if not is_shared(settings.store.url):
        open_store(settings.store, settings.data.path(), SystemClock())  # what is no store at all is told of as such
        raise ConfigError(
            f"server.workers: {workers} processes cannot share a store that one process owns; run a Redis and name it "
            "in store.url (--store redis://127.0.0.1:6379/0), or run one worker"
        )
    if server.admin_port and server.admin_port + workers - 1 > _MOST_PORT:
        raise ConfigError(
            f"server.workers: worker i listens for operators on server.admin_port + i, and {server.admin_port} + "
            f"{workers - 1} is no port; choose a lower server.admin_port"
        )
    if server.port and server.admin_port <= server.port < server.admin_port + workers:
        raise ConfigError(
            f"server.workers: server.port {server.port} is among the workers' admin ports, {server.admin_port} to "
            f"{server.admin_port + workers - 1}; choose another one"
        )


def _worker(settings: Settings, words: Sequence[str], port: int, index: int) -> Worker:
    # Of an option given twice the last one counts.
    admin_port = settings.server.admin_port and settings.server.admin_port + index
    own = ("--workers", "1", "--worker", str(index), "--port", str(port), "--admin-port", str(admin_port))
    environ = {**os.environ, "CACHEPROXY_DATA__SHARED": "true"}
    if not settings.encoder.threads:
        cores = usable_cores()
        environ["CACHEPROXY_ENCODER__THREADS"] = str(max(1, min(4, cores // settings.server.workers)))
    return Worker(index=index, command=(sys.executable, "-m", "cacheproxy", *words, *own), environ=environ)


async def supervise(workers: Sequence[Worker], first_wait_s: float = _FIRST_WAIT_S) -> int:
    """Keep workers running until a signal asks them to end; return the exit code.

    SIGTERM and SIGINT reach them as SIGTERM, a second one too, and SIGHUP as itself. The code is 0 when all ended well
    after that, 2 when the configuration keeps one from its first start, else 1.
    """
    loop, crew = asyncio.get_running_loop(), Crew(first_wait_s)
    handed_on: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: crew.stop,
        signal.SIGINT: crew.stop,
        signal.SIGHUP: crew.reload,
    }
    for number, hand_on in handed_on.items():
        loop.add_signal_handler(number, hand_on)
    try:
        log.info("workers_started", workers=len(workers))
        codes = await asyncio.gather(*(crew.keep(worker) for worker in workers))
    finally:
        for number in handed_on:
            loop.remove_signal_handler(number)
    return _WRONG_CONFIGURATION if _WRONG_CONFIGURATION in codes else int(any(codes))


class Crew:
    """The workers of one parent."""

    def __init__(self, first_wait_s: float) -> None:
        self._first_wait_s = first_wait_s
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._ending = asyncio.Event()

    def stop(self) -> None:
        """Ask every worker to end; asked again, they stop without waiting for answers in flight."""
        log.info("workers_draining", again=self._ending.is_set())
        self._ending.set()
        self._tell(signal.SIGTERM)

    def reload(self) -> None:
        """Have every worker read keys and pack again."""
        self._tell(signal.SIGHUP)

    async def keep(self, worker: Worker) -> int:
        """Run a worker, again and again, until they are to end; return its last exit code."""
        wait_s, first = self._first_wait_s, True
        while True:
            began = time.monotonic()
            code = await self._run(worker)
            if self._ending.is_set():
                return 0 if code == -signal.SIGTERM else code  # told so before it could take a word
            lived_s = time.monotonic() - began
            if first and code == _WRONG_CONFIGURATION:
                self.stop()  # it has said what is wrong, and it is wrong for all
                return code
            if lived_s >= SHORT_S:
                wait_s = self._first_wait_s
            first = False
            log.error("worker_ended", worker=worker.index, code=code, lived_s=round(lived_s, 1), again_in_s=wait_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ending.wait()
                return 0
            wait_s = min(2 * wait_s, _MOST_WAIT_S)

    async def _run(self, worker: Worker) -> int:
        # In a session of its own: a terminal's Ctrl-C would reach it beside the parent's word, and count as the second.
        process = await asyncio.create_subprocess_exec(
            *worker.command,
            env=worker.environ,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent if _PRCTL is not None else None,
        )
        self._running[worker.index] = process
        try:
            if self._ending.is_set():  # told to end while it was being started
                process.terminate()
            return await process.wait()
        finally:
            del self._running[worker.index]

    def _tell(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def _end_with_parent() -> None:
    """Have the kernel end this process, by asking, when the parent is killed."""
    assert _PRCTL is not None, "asked for on Linux alone"
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
