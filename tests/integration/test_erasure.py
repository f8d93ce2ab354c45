"""After an erasure nothing of a tenant or an end user is left: not in a file, a log, a metric or an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pytest

from tests.support import openai_wire
from tests.support.operators import admin, tenant_of, told
from tests.support.polling import eventually_true
from tests.support.process import serving
from tests.support.proxy import chat

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.process import ServerProcess
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
DEBUG = {
    "CACHEPROXY_LOG__LEVEL": "debug",
    "CACHEPROXY_INDEX__FLAT_LIMIT": "2",  # so that vectors are in graphs, and graphs in snapshots
    "CACHEPROXY_INDEX__SNAPSHOT_INTERVAL_S": "0.2",
    "CACHEPROXY_FEDERATED__COLLECT": "all",
    "CACHEPROXY_FEDERATED__KEEP_TEXTS": "true",
}
WORDS = ("lighthouse", "violin", "harbour", "meadow", "comet", "glacier")


def questions(mark: str) -> list[str]:
    return [f"What is the history of the {word} called {mark}{number}?" for number, word in enumerate(WORDS)]


async def remembered(proxy: Proxy, key: str, mark: str, **fields: Any) -> None:
    """Leave a trace in every part: entries, vectors, snapshots, verdicts, lookups, near misses."""
    for text in questions(mark):
        await proxy.fill(chat(text, **fields), key=key, headers={"x-cacheproxy-tags": f"tag-{mark}"})
    for text in questions(mark)[:3]:
        near = await proxy.ask(chat(text.replace("What is", "What's"), **fields), key=key)
        far = await proxy.ask(chat(f"Tell me a story about {text[8:]}", **fields), key=key)
        for answered in (near, far):
            if entry := answered.get("x-cacheproxy-entry"):
                words = {"id": answered.whole["id"], "verdict": "bad", "comment": f"comment-{mark}"}
                said = await proxy.ask(openai_wire.encode(words), key=key, target="/v1/cache/feedback")
                assert said.status == 200, (entry, said.body)


def holding(data_dir: Path, mark: str) -> dict[str, int]:
    """Return the files that hold a mark, and how often."""
    found = {}
    for path in sorted(data_dir.rglob("*")):
        if path.is_file() and (count := path.read_bytes().count(mark.encode())):
            found[path.name] = count
    return found


async def vectors_of(proxy: Proxy, tenant: str) -> int:
    return len((await told(proxy, "GET", f"entries?tenant={tenant}&limit=1000"))["entries"])


@pytest.mark.parametrize("by", ["tenant", "user"])
async def test_nothing_is_left_anywhere(upstream: ScriptedUpstream, tmp_path: Path, by: str) -> None:
    gone, kept = f"gone{uuid4().hex}", f"kept{uuid4().hex}"
    key, other = f"sk-{uuid4().hex}", f"sk-{uuid4().hex}"
    theirs = {"tenant": (key, other), "user": (key, key)}[by]
    async with serving(tmp_path, upstream.url, environ=DEBUG) as server:
        proxy = server.proxy
        await remembered(proxy, theirs[0], gone, user=f"user-{gone}")
        await remembered(proxy, theirs[1], kept, user=f"user-{kept}")
        await admin(proxy, "GET", "near-misses")
        before = holding(tmp_path, gone)
        assert {"entries.sqlite3", "feedback.sqlite3"} <= {name.removesuffix("-wal") for name in before}, before
        selector = {"tenant": await tenant_of(proxy, key)} if by == "tenant" else {"user": f"user-{gone}"}
        done = await told(proxy, "POST", "purge", selector)
        assert done["purged"] >= len(WORDS)
        assert {part["part"]: part["pending"] for part in done["parts"]} == dict.fromkeys(
            (
                "entries",
                "feedback",
                "training",
                "budget",
                "lookups",
                "questions",
                "embeddings",
                "verifier",
                "side_vectors",
                "snapshots",
            ),
            "",
        )
        removed = {part["part"]: part["removed"] for part in done["parts"]}
        assert removed["feedback"] > 0
        assert removed["training"] > 0
        assert removed["lookups"] > 0
        assert holding(tmp_path, gone) == {}
        for path in ("entries?limit=1000", "near-misses", "stats", "audit", "recommendations", "config"):
            assert gone.encode() not in (await admin(proxy, "GET", path)).body, path
        for text in questions(gone):
            assert not await proxy.cached(chat(text, user=f"user-{gone}"), key=theirs[0])
        for text in questions(kept):
            assert await proxy.cached(chat(text, user=f"user-{kept}"), key=theirs[1])
        assert kept in str(await told(proxy, "GET", "entries?limit=1000"))
        assert await server.stop() == 0
    assert gone not in server.said
    assert holding(tmp_path, gone) == {}
    assert holding(tmp_path, kept)


async def test_no_snapshot_holds_an_erased_vector(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    from cacheproxy.index.snapshot import current

    key, mark = f"sk-{uuid4().hex}", uuid4().hex
    async with serving(tmp_path, upstream.url, environ=DEBUG) as server:
        await remembered(server.proxy, key, mark)
        tenant = await tenant_of(server.proxy, key)
        entries = (await told(server.proxy, "GET", f"entries?tenant={tenant}&limit=1000"))["entries"]
        victim = next(entry for entry in entries if "comet" in entry["text"])
        done = await told(server.proxy, "POST", "purge", {"id": victim["id"], "erase": True})
        assert done["ids"] == [victim["id"]]
        index = tmp_path / "index"
        assert victim["id"].encode() not in b"".join(path.read_bytes() for path in index.rglob("*") if path.is_file())
        assert await server.stop() == 0
    generation = current(tmp_path / "index")
    assert generation is not None
    assert np.all([victim["id"].encode() not in path.read_bytes() for path in generation.iterdir()])


async def test_an_erasure_that_was_cut_short_is_finished_after_a_restart(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    key, mark = f"sk-{uuid4().hex}", f"gone{uuid4().hex}"
    async with serving(tmp_path, upstream.url, environ=DEBUG) as server:
        await remembered(server.proxy, key, mark)
        tenant = await tenant_of(server.proxy, key)
        await server.kill()
    # What a crash right after the request leaves: the word that it is owed, and everything else.
    meant: dict[str, object] = {"tenant": tenant, "ids": [], "before_s": None}
    owed = {"asked_s": 9e9, "parts": ["entries", "feedback", "training", "snapshots"], "ids": [], "meant": meant}
    (tmp_path / "erasures.json").write_bytes(openai_wire.encode([owed]))
    assert holding(tmp_path, mark)
    async with serving(tmp_path, upstream.url, environ=DEBUG) as server:
        await _told(server, "erasure_finished")
        assert holding(tmp_path, mark) == {}
        assert not (tmp_path / "erasures.json").exists()
        assert not await server.proxy.cached(chat(questions(mark)[0]), key=key)


async def _told(server: ServerProcess, event: str) -> None:
    async def done() -> bool:
        return event in {line["event"] for line in server.events}

    await eventually_true(done, event, 20)
