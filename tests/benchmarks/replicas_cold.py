"""A replica that starts with nothing over an engine that holds much: when is it ready, and when does it find?"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.polling import eventually_true
from tests.support.proxy import PARAPHRASE, QUESTION
from tests.support.redis import redis_server
from tests.support.replica_child import opened
from tests.support.replicas import fleet

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from cacheproxy.model import Entry
    from tests.support.replicas import Replica

_AT_ONCE = 64
_SIMILAR: dict[str, str] = {}
"""No header: a question may be answered by similarity."""
_LONGEST_S = 300.0


async def cold(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fill the engine in the name of one replica, then start another one and ask it what only similarity answers."""
    async with redis_server() as redis, fleet(directory, [redis.url]) as found:
        first = found.replicas[0]
        await eventually_true(lambda: _keeps(first), "the first answer is kept", 30)
        entry_id = found.ids[QUESTION]
        first.leave()
        await first.server.stop()
        found.replicas.clear()
        began_s = time.monotonic()
        async with opened(redis.url, directory, "0") as filler:
            known = await filler.store.get(entry_id)
            assert known is not None
            assert known.vector is not None
            entries = _others(known, arguments.entries - 1)
            fence = filler.store.fence

            async def keep() -> None:
                for entry in entries:
                    assert await filler.store.put(entry, fence)

            await asyncio.gather(*(keep() for _ in range(_AT_ONCE)))
        filled_s = time.monotonic() - began_s
        began_s = time.monotonic()
        replica = await found.add(redis.url)
        listening_s = time.monotonic() - began_s
        await eventually_true(lambda: _ready(replica), "the replica is ready", _LONGEST_S)
        ready_s = time.monotonic() - began_s
        await eventually_true(lambda: _finds(replica), "it finds by similarity", _LONGEST_S)
        return {
            "entries": arguments.entries,
            "filled_s": round(filled_s, 1),
            "listening_s": round(listening_s, 1),
            "ready_s": round(ready_s, 1),
            "finds_by_similarity_s": round(time.monotonic() - began_s, 1),
            "rss_mb": round(replica.server.memory_bytes / 1e6),
        }


async def _keeps(replica: Replica) -> bool:
    return "stored" in (await replica.ask(QUESTION, _SIMILAR)).cache_status.parameters


async def _ready(replica: Replica) -> bool:
    return (await replica.server.proxy.call("GET", "/readyz")).status == 200


async def _finds(replica: Replica) -> bool:
    told = await replica.ask(PARAPHRASE, {**_SIMILAR, "cache-control": "only-if-cached"})
    return (told.outcome, told.tier) == ("hit", "semantic")


def _others(known: Entry, count: int) -> Iterator[Entry]:
    """Yield entries of the same partition, with vectors of their own."""
    assert known.vector is not None
    random = np.random.default_rng(1)
    for number in range(count):
        fingerprint = hashlib.sha256(b"%d" % number).digest()
        vector = random.standard_normal(len(known.vector)).astype(np.float32)
        vector /= np.float32(np.linalg.norm(vector))
        yield dataclasses.replace(
            known, id=fingerprint[:16].hex(), fingerprint=fingerprint, text=f"question {number}", vector=vector
        )
