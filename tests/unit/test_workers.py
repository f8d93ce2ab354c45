"""The parent of several workers: what it refuses, and how it keeps real processes running, handing signals on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.http.listener import bind
from cacheproxy.settings import Data, Server, Settings, Store, Upstream
from cacheproxy.workers import Worker, check, serve, supervise
from tests.support.polling import eventually

if TYPE_CHECKING:
    from pathlib import Path

SHARED = Store(url="redis://127.0.0.1:6379/0")
# Writes down that it began, under its number, and what it is told; what it then does is the third word.
CHILD = """
import os, pathlib, signal, sys, time
folder, index, end = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def note(word): (folder / f"{index}.{os.getpid()}.{word}").touch()
def leave(*_):
    note("term")
    if end != "stubborn":
        sys.exit(3 if end == "badly" else 0)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGHUP, lambda *_: note("hup"))
note("began")
if end == "wrong": sys.exit(2)
if end == "crash": sys.exit(1)
if end == "once" and len(list(folder.glob(f"{index}.*.began"))) == 1: sys.exit(1)
while len(list(folder.glob(f"{index}.{os.getpid()}.*"))) < 9:
    time.sleep(0.01)
    if end == "stubborn" and (folder / f"{index}.{os.getpid()}.term").exists():
        (folder / f"{index}.{os.getpid()}.term").rename(folder / f"{index}.again.{time.monotonic_ns()}")
        if len(list(folder.glob(f"{index}.again.*"))) == 2: sys.exit(0)
"""


def worker(folder: Path, index: int, end: str = "well") -> Worker:
    return Worker(index=index, command=(sys.executable, "-c", CHILD, str(folder), str(index), end), environ=os.environ)


def beginnings(folder: Path) -> list[float]:
    """When each process began, in seconds."""
    return sorted(file.stat().st_mtime for file in folder.glob("*.began"))


def pids(folder: Path) -> list[int]:
    return [int(file.name.split(".")[1]) for file in folder.glob("*.began")]


def seen(folder: Path, word: str) -> int:
    return len(list(folder.glob(f"*.{word}*")))


async def run_until_told(folder: Path, *workers: Worker, began: int, signals: tuple[signal.Signals, ...]) -> int:
    """Supervise until so many began; then send this process signals, one after the other; return the exit code."""
    running = asyncio.create_task(supervise(workers, first_wait_s=0.05))
    await eventually(lambda: seen(folder, "began") >= began, "the workers began", within_s=20)
    for number in signals:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.3)
    async with asyncio.timeout(20):
        return await running


# What is refused.


@pytest.mark.parametrize("url", ["", "memory://", "sqlite:///x.db"])
def test_more_than_one_on_an_embedded_store_is_refused_with_what_to_do(url: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.workers: 2 processes .* name it in store\.url"):
        check(Settings(server=Server(workers=2), store=Store(url=url)))


@pytest.mark.parametrize("server", [Server(workers=2), Server(workers=3, port=0, admin_port=0)])
def test_workers_on_a_shared_store_are_not(server: Server) -> None:
    check(Settings(server=server, store=SHARED))


def test_admin_ports_beyond_the_last_port_are_refused() -> None:
    with pytest.raises(ConfigError, match="65534 \\+ 2 is no port"):
        check(Settings(server=Server(workers=3, admin_port=65534), store=SHARED))


def test_a_data_port_among_the_admin_ports_is_refused() -> None:
    with pytest.raises(ConfigError, match="8083 is among the workers' admin ports, 8081 to 8084"):
        check(Settings(server=Server(workers=4, port=8083), store=SHARED))


def test_a_port_is_shared_by_those_alone_who_say_so() -> None:
    with bind("127.0.0.1", 0, "server.port", shared=True, listen=False) as reserved:
        port = reserved.getsockname()[1]
        bind("127.0.0.1", port, "server.port", shared=True).close()
        with bind("127.0.0.1", port, "server.port", shared=True), pytest.raises(ConfigError, match="already in use"):
            bind("127.0.0.1", port, "server.port")


# What is kept running.


async def test_all_end_well_when_it_is_told_to_end(tmp_path: Path) -> None:
    code = await run_until_told(
        tmp_path, worker(tmp_path, 0), worker(tmp_path, 1), began=2, signals=(signal.SIGHUP, signal.SIGTERM)
    )
    assert (code, seen(tmp_path, "hup"), seen(tmp_path, "term"), seen(tmp_path, "began")) == (0, 2, 2, 2)


async def test_one_that_died_is_started_again(tmp_path: Path) -> None:
    code = await run_until_told(
        tmp_path, worker(tmp_path, 0, "once"), worker(tmp_path, 1), began=3, signals=(signal.SIGINT,)
    )
    assert (code, seen(tmp_path, "began"), seen(tmp_path, "term")) == (0, 3, 2)


async def test_one_that_was_killed_is_started_again(tmp_path: Path) -> None:
    running = asyncio.create_task(supervise([worker(tmp_path, 0)], first_wait_s=0.05))
    await eventually(lambda: seen(tmp_path, "began") == 1, "it began", within_s=20)
    [pid] = pids(tmp_path)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: seen(tmp_path, "began") == 2, "another one began", within_s=20)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


async def test_one_that_ends_badly_is_told_by_the_exit_code(tmp_path: Path) -> None:
    workers = worker(tmp_path, 0), worker(tmp_path, 1, "badly")
    assert await run_until_told(tmp_path, *workers, began=2, signals=(signal.SIGTERM,)) == 1


async def test_a_wrong_configuration_ends_all_at_once(tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        assert await supervise([worker(tmp_path, 0), worker(tmp_path, 1, "wrong")], first_wait_s=0.05) == 2


async def test_a_second_word_reaches_them_as_well(tmp_path: Path) -> None:
    told = (signal.SIGTERM, signal.SIGTERM)
    assert await run_until_told(tmp_path, worker(tmp_path, 0, "stubborn"), began=1, signals=told) == 0
    assert seen(tmp_path, "again") == 2


async def test_pauses_between_starts_grow(tmp_path: Path) -> None:
    assert await run_until_told(tmp_path, worker(tmp_path, 0, "crash"), began=4, signals=(signal.SIGTERM,)) == 0
    pauses = [later - earlier for earlier, later in pairwise(beginnings(tmp_path))]
    assert pauses[1] >= 0.1
    assert pauses[2] >= 0.2


async def test_they_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = f"""
import asyncio, os, sys
from cacheproxy.workers import Worker, supervise
words = (sys.executable, "-c", {CHILD!r}, {str(tmp_path)!r}, "0", "well")
asyncio.run(supervise([Worker(index=0, command=words, environ=os.environ)]))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, stderr=asyncio.subprocess.DEVNULL)
    await eventually(lambda: seen(tmp_path, "began") == 1, "the worker began", within_s=30)
    process.kill()
    await process.wait()
    await eventually(lambda: seen(tmp_path, "term") == 1, "the worker was told to end", within_s=10)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"store": Store(url="http://127.0.0.1:6379")}, "named by redis://"),
        ({"store": Store(url="redis://127.0.0.1:port")}, "a port that is not a number"),
        ({"store": Store(url=SHARED.url, prefix="A b")}, "lower-case letters"),
        ({"store": SHARED, "upstream": Upstream(url="nonsense")}, r"upstream\.url"),
    ],
    ids=["no store", "no port", "no prefix", "no backend"],
)
async def test_what_every_worker_would_complain_of_is_said_once_by_the_parent(
    sections: dict[str, Any], told: str, tmp_path: Path
) -> None:
    settings = Settings(server=Server(workers=2, port=0), data=Data(dir=str(tmp_path)), **sections)
    with pytest.raises(ConfigError, match=told):
        await serve(settings, ["serve"])
    assert os.listdir(tmp_path) == [], "nothing was begun"  # noqa: PTH208 - Path.iterdir is not for async code
