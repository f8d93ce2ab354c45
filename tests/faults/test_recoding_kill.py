"""kill -9 while everything kept is encoded anew: the next start goes on with what was made, and no hit is wrong."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.embed.headfile import ANY, pack, unpack
from cacheproxy.index.sidefile import FILE as SIDE
from cacheproxy.policy.loader import POLICY_FILE
from tests.support.admin import ask_admin, told
from tests.support.heads import manifest_of
from tests.support.polling import eventually, eventually_true
from tests.support.process import serving
from tests.support.proxy import PARAPHRASE, QUESTION, chat
from tests.support.tiny import tiny_change, tiny_encoder, tiny_settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

KEY = "sk-test"
ENTRIES = 1500
LEAST = 64
"""Vectors that are beside the store when it is killed."""
ALONE = {"x-cacheproxy-namespace": "alone"}
"""Where the paraphrase has one question that it may be near to: the encoder's weights are random."""
PLAIN, LEARNT = 0.895, 0.9
"""Between the paraphrase and all else, for the tiny encoder and for what it is changed to."""


def question(number: int) -> str:
    """Return one of many questions; in capitals it is the same to an encoder, and another one to a fingerprint."""
    return f"How long should I boil egg number {number * 37} of the batch that came on day {number % 7}?"


def made(folder: Path) -> dict[str, int]:
    """Return which vectors are beside the store, by id, each with its row: one that is made again gets a new row."""
    file = folder / SIDE
    if not file.exists():
        return {}
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5) as connection:
            return dict(connection.execute("SELECT id, rowid FROM vectors").fetchall())
    except sqlite3.OperationalError:
        return {}  # it is being made


class Asking:
    """Asks what has a near answer, again and again, and notes what every hit was told by."""

    def __init__(self, kept: dict[int, str], paraphrased: str) -> None:
        self.seen: Counter[tuple[str | None, str | None]] = Counter()
        self.hits = self.misses = 0
        self.wrong: list[str] = []
        self._kept = kept
        self._paraphrased = paraphrased

    @property
    def ids(self) -> set[str]:
        """All entries that are kept."""
        return {*self._kept.values(), self._paraphrased}

    async def some(self, live: Proxy, begin: int) -> None:
        """Ask ten questions; what waits to be encoded anew may be a miss, and is never another one's answer."""
        headers = {"cache-control": "only-if-cached"}
        for number in range(begin, begin + 10):
            number %= ENTRIES
            answer = await live.ask(chat(question(number).upper()), key=KEY, headers=headers)
            assert answer.status in {200, 504}, answer.status
            self._note(answer.get("x-cacheproxy-entry") if answer.status == 200 else None, self._kept[number])
        answer = await live.ask(chat(PARAPHRASE), key=KEY, headers=headers | ALONE)
        if answer.status == 200:
            self.seen[answer.get("x-cacheproxy-similarity"), answer.get("x-cacheproxy-threshold")] += 1
            self._note(answer.get("x-cacheproxy-entry"), self._paraphrased)

    def _note(self, found: str | None, expected: str) -> None:
        self.hits += found is not None
        self.misses += found is None
        if found not in {None, expected}:
            self.wrong.append(f"{found} for {expected}")


async def keep(live: Proxy) -> tuple[dict[int, str], str]:
    """Keep many answers; return their entries, and the one that has a paraphrase."""
    kept, numbers = dict[int, str](), iter(range(ENTRIES))

    async def some() -> None:
        for number in numbers:
            answer = await live.ask(chat(question(number)), key=KEY, headers={"x-cacheproxy-threshold": "1"})
            assert answer.outcome == "miss", answer.reason
            kept[number] = str(answer.get("x-cacheproxy-entry"))

    await asyncio.gather(*(some() for _ in range(8)))
    first = await live.ask(chat(QUESTION), key=KEY, headers=ALONE)
    return kept, str(first.get("x-cacheproxy-entry"))


async def test_a_kill_in_the_midst_of_encoding_costs_a_batch_and_no_wrong_hit(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    base = tiny_encoder().fingerprint
    manifest, weights = pack(tiny_change(), manifest_of(base, thresholds={ANY: LEARNT}))
    epoch = unpack(manifest, weights, "it").epoch
    promoted = {"manifest": msgspec.to_builtins(manifest), "weights": base64.b64encode(weights).decode()}
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / POLICY_FILE).write_text(
        'schema = 1\nname = "test"\ndescription = "x"\ndefault_category = "default"\n'
        "[categories.default]\nsemantic = true\nverify = false\nttl_s = 10000\n"
        f'[encoders.tiny]\nfingerprint = "{base}"\ncalibrated_on = "x"\nthresholds = {{ default = {PLAIN} }}\n'
    )
    environ = {
        "CACHEPROXY_ENCODER__NAME": tiny_settings().name,
        "CACHEPROXY_ENCODER__DEVICE": "cpu",
        "CACHEPROXY_VERIFIER__PATH": "off",
        "CACHEPROXY_POLICIES__PACK": str(folder),
        "CACHEPROXY_SERVER__LOOKUP_TIMEOUT_MS": "2000",
        "CACHEPROXY_UPSTREAM__MAX_CONNECTIONS": "64",
    }
    data = tmp_path / "data"

    async with serving(data, upstream.url, environ=environ) as server:
        asking = Asking(*await keep(server.proxy))
        await asking.some(server.proxy, 0)
        assert not asking.misses
        done = await ask_admin(server.proxy, "POST", "/encoders", {"promote": promoted, "force": True})
        assert done.status in {200, 202}, done.body
        await eventually(lambda: len(made(data)) >= LEAST, "some are encoded", within_s=60)
        await server.kill()
    before = made(data)
    assert LEAST <= len(before) < ENTRIES

    async with serving(data, upstream.url, environ=environ) as server:
        begin = 0

        async def serves() -> bool:
            nonlocal begin
            await asking.some(server.proxy, begin := begin + 10)
            found = await told(server.proxy, "/encoders")
            assert found["progress"]["step"] != "failed", found["progress"]
            return bool(found["in_use"]["searched"] == epoch and found["progress"]["step"] == "")

        await eventually_true(serves, "it serves", within_s=90)
        after = made(data)
        assert {one: row for one, row in after.items() if one in before} == before  # none of them was made again
        assert set(after) == asking.ids
        for number in range(0, 200, 10):
            await asking.some(server.proxy, number)
        assert not asking.wrong
        assert not asking.misses  # the one before serves until all of it can be found by the other one
        assert {threshold for _, threshold in asking.seen} == {f"{PLAIN:.4f}", f"{LEARNT:.4f}"}
        assert len(asking.seen) == 2, asking.seen  # each epoch's similarity with its own threshold, and with no other
