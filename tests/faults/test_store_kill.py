"""kill -9 at any instant loses no acknowledged entry and leaves no corrupt file (reliability row 54, goal G8)."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheproxy.settings import Store
from cacheproxy.store.sqlite import SqliteStore
from tests.support.clock import FakeClock
from tests.support.entries import entry_id, make_entry, same

if TYPE_CHECKING:
    from cacheproxy.model import Entry

KILLS = int(os.environ.get("CACHEPROXY_TEST_KILLS", "25"))
ROOT = Path(__file__).parents[2]


def _run_and_kill(file: Path, round_: int, after_s: float) -> list[str]:
    """Return what the child acknowledged before it was killed, so long after its first acknowledgement."""
    command = [sys.executable, "-m", "tests.support.store_child", str(file), str(round_)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(after_s)
        child.kill()
        said = first + child.stdout.read()
    return said.decode().splitlines()


def _acknowledged(lines: list[str], versions: dict[str, int], purged: set[str]) -> None:
    for line in lines:
        verb, _, rest = line.partition(" ")
        if verb == "purged":
            purged.add(rest)
        else:
            key, _, version = rest.rpartition(" ")
            versions[key] = int(version)


async def _check(file: Path, versions: dict[str, int], purged: set[str]) -> None:
    async with SqliteStore(file, Store(hot_bytes=0), FakeClock()) as store:
        assert store.quarantined == 0
        for key, version in versions.items():
            entry = await store.get(entry_id(key))
            if key in purged:
                assert entry is None
            elif key.startswith("shared"):
                assert _version(entry) >= version  # the next one may have been committed, but not acknowledged
            else:
                # A purge may have been committed without being acknowledged, of the entries that are purged.
                assert same(_unpadded(entry), make_entry(key)) or (entry is None and int(key.split("/")[2]) % 7 == 0)
        assert store.corrupt_records == 0
        assert store.health() == ""


def _version(entry: Entry | None) -> int:
    assert entry is not None
    version = entry.reply.body["version"]
    key = entry.reply.body["key"]
    assert same(_unpadded(entry), make_entry(key, version=version))
    return int(version)


def _unpadded(entry: Entry | None) -> Entry | None:
    if entry is not None:
        body = entry.reply.body
        assert isinstance(body, dict)
        body.pop("padding", None)
    return entry


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * KILLS)
def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(20_26)
    everything: dict[str, int] = {}
    purged: set[str] = set()
    for round_ in range(KILLS):
        versions: dict[str, int] = {}
        _acknowledged(_run_and_kill(tmp_path / "e.db", round_, chance.uniform(0, 0.4)), versions, purged)
        assert versions
        asyncio.run(_check(tmp_path / "e.db", versions, purged))
        everything |= versions
    asyncio.run(_check(tmp_path / "e.db", everything, purged))
