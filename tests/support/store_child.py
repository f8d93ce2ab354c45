"""A process that owns a store file and says what was acknowledged, until it is killed.

`python -m tests.support.store_child FILE ROUND` prints "put KEY VERSION" and "purged KEY", each once acknowledged;
`python -m tests.support.store_child FILE hold` prints "open", then waits for the end of stdin.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from cacheproxy.errors import ConfigError
from cacheproxy.settings import Store
from cacheproxy.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.entries import entry_id, make_entry

WORKERS = 8
NEW_ENTRIES = 40
"""By each worker; after that it goes on replacing and purging."""


def say(line: str) -> None:
    """Print a line so that it outlives this process."""
    os.write(1, line.encode() + b"\n")


async def work(store: SqliteStore, round_: str, worker: int, padding: random.Random) -> None:
    """Put new entries, replace one again and again, and purge some."""
    shared = f"shared {worker}"
    version = int(round_) * 1_000_000
    new = 0
    while True:
        version += 1
        if await store.put(make_entry(shared, version=version, padding=padding.randrange(9000)), store.fence):
            say(f"put {shared} {version}")
        if new < NEW_ENTRIES:
            new += 1
            key = f"{round_}/{worker}/{new}"
            if await store.put(make_entry(key, padding=padding.randrange(9000)), store.fence):
                say(f"put {key} 0")
                if new % 7 == 0:
                    await store.purge([entry_id(key)])
                    say(f"purged {key}")


async def main(file: Path, task: str) -> None:
    """Do one of the tasks above."""
    async with SqliteStore(file, Store(), FakeClock()) as store:
        if task == "hold":
            say("open")
            await asyncio.to_thread(sys.stdin.read)
            return
        async with asyncio.TaskGroup() as workers:
            for worker in range(WORKERS):
                workers.create_task(work(store, task, worker, random.Random(f"{task}/{worker}")))


if __name__ == "__main__":
    try:
        asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
    except ConfigError as exc:
        sys.exit(exc.message)
