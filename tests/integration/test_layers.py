"""An encoder with changed layers takes over: examined, under load, after a stop, and undone."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from contextlib import asynccontextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from cacheproxy.cli import main
from cacheproxy.embed.export import export
from cacheproxy.embed.headfile import ANY, Artefact, pack, unpack, write
from cacheproxy.embed.slow import Slow
from cacheproxy.embed.tuned import open_tuned
from cacheproxy.index.sidefile import FILE as SIDE
from cacheproxy.learn.pairfile import FILE
from cacheproxy.learn.pairwriter import PairWriter
from cacheproxy.policy.loader import POLICY_FILE
from cacheproxy.query.chain import in_context
from tests.support.admin import ask_admin, told
from tests.support.encoders import ENCODERS
from tests.support.heads import manifest_of
from tests.support.pairs import row
from tests.support.polling import eventually_true
from tests.support.proxy import PARAPHRASE, QUESTION, UNRELATED, chat, proxy_settings, started
from tests.support.tiny import tiny_change, tiny_encoder, tiny_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from click.testing import Result

    from cacheproxy.embed.encoder import Encoder
    from cacheproxy.embed.source import Source
    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-test"
PLAIN, LEARNT = 0.895, 0.9
"""Between the paraphrase and all else, for the tiny encoder and for what it is changed to."""

WORDS = ("red", "blue", "car", "house", "tree", "order", "refund", "invoice", "price", "boil", "egg", "cat", "dog")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export in this process, where torch is loaded once; leave its logging alone."""

    def exported(source: Source, precision: str, out: Path) -> None:
        export(source, precision, out)

    monkeypatch.setattr("cacheproxy.embed.artefact.export_in_child", exported)
    monkeypatch.setattr("cacheproxy.embed.tuned.export_in_child", exported)
    monkeypatch.setattr("cacheproxy.logs.configure", lambda _: None)


@pytest.fixture(scope="module")
def artefact() -> Artefact:
    return unpack(*packed(), "it")


def packed() -> tuple[Any, bytes]:
    base = tiny_encoder().fingerprint
    return pack(tiny_change(), manifest_of(base, thresholds={ANY: LEARNT}))


def body(**more: Any) -> dict[str, Any]:
    manifest, weights = packed()
    promote = {"manifest": msgspec.to_builtins(manifest), "weights": base64.b64encode(weights).decode()}
    return {"promote": promote, **more}


@asynccontextmanager
async def proxy(upstream: ScriptedUpstream, folder: Path) -> AsyncIterator[Proxy]:
    (folder / "pack").mkdir(exist_ok=True)
    (folder / "pack" / POLICY_FILE).write_text(
        'schema = 1\nname = "test"\ndescription = "x"\ndefault_category = "default"\n'
        "[categories.default]\nsemantic = true\nverify = false\nttl_s = 1000\n"
        f'[encoders.tiny]\nfingerprint = "{tiny_encoder().fingerprint}"\ncalibrated_on = "x"\n'
        f"thresholds = {{ default = {PLAIN} }}\n"
    )
    settings = proxy_settings(
        upstream.url,
        folder / "data",
        policies={"pack": str(folder / "pack")},
        verifier={"path": "off"},
        server={"lookup_timeout_ms": 2000},
        store={"url": f"sqlite:///{folder / 'entries.sqlite3'}"},
        encoder=msgspec.to_builtins(tiny_settings()),
    )
    async with started(settings) as live:
        yield live


async def ask(live: Proxy, text: str) -> Answered:
    return await live.ask(chat(text), key=KEY)


async def fill(live: Proxy, count: int) -> None:
    """Keep so many answers, though the tiny encoder finds many of their questions alike."""
    for number in range(count):
        text = f"{UNRELATED} Egg number {number * 37}."
        answer = await live.ask(chat(text), key=KEY, headers={"x-cacheproxy-threshold": "1"})
        assert answer.outcome == "miss", answer.reason


async def talk(live: Proxy, *turns: str) -> Answered:
    messages = [{"role": "user" if at % 2 == 0 else "assistant", "content": turn} for at, turn in enumerate(turns)]
    return await live.ask({**chat(), "messages": messages}, key=KEY)


async def change(live: Proxy, wanted: dict[str, Any], query: str = "") -> Answered:
    return await ask_admin(live, "POST", f"/encoders{query}", wanted)


async def examined(live: Proxy, wanted: dict[str, Any], query: str = "") -> dict[str, Any]:
    """Return what came of an encoder that was to be promoted: the proxy tells at once where to look for that."""
    began = await change(live, wanted, query)
    assert (began.status, began.get("location")) == (202, "/admin/v1/encoders"), began.body
    assert (began.json()["examining"], began.json()["began"], began.json()["examined"]) == (True, False, None)

    async def done() -> bool:
        return bool((await told(live, "/encoders"))["progress"]["step"] != "examining")

    await eventually_true(done, "it was examined", within_s=60)
    found = await told(live, "/encoders")
    assert found["last"] is not None, found["progress"]
    return dict(found["last"])


async def serves(live: Proxy, epoch: str) -> None:
    async def done() -> bool:
        found = await told(live, "/encoders")
        assert found["progress"]["step"] != "failed", found["progress"]
        return bool(found["in_use"]["searched"] == epoch and found["progress"]["step"] == "")

    await eventually_true(done, f"{epoch} serves", within_s=60)


def aside(folder: Path) -> dict[str, np.ndarray]:
    """Return the vectors beside the store, by id."""
    with sqlite3.connect(folder / "data" / SIDE) as connection:
        rows = connection.execute("SELECT id, vector FROM vectors").fetchall()
    return {one: np.frombuffer(raw, dtype="<f4") for one, raw in rows}


def farther(*encoders: Encoder) -> list[str]:
    """Return questions that none of the encoders finds as near to the paraphrase as the question is.

    The tiny ones find many alike: else what came last could be nearer, or not, as it is not searched yet.
    """
    texts = [f"{UNRELATED} Again {number}." for number in range(400)]
    for encoder in encoders:
        vectors, _ = encoder.encode([PARAPHRASE, QUESTION, *texts])
        near = vectors[1:] @ vectors[0]
        texts = [text for text, similarity in zip(texts, near[1:], strict=True) if similarity < near[0] - 0.01]
    assert len(texts) > 100
    return texts


async def test_it_takes_over_under_load_and_after_a_restart_and_goes_again(
    upstream: ScriptedUpstream, tmp_path: Path, artefact: Artefact
) -> None:
    tuned = open_tuned(tiny_settings(), ENCODERS.parent, artefact)
    others = cycle(farther(tiny_encoder(), tuned))
    history = ("What colours do you have?", "Red and blue.", "And how much are they?")
    async with proxy(upstream, tmp_path) as live:
        base = str((await told(live, "/encoders"))["in_use"]["epoch"])
        kept = str((await ask(live, QUESTION)).get("x-cacheproxy-entry"))
        talked = str((await talk(live, *history)).get("x-cacheproxy-entry"))
        await fill(live, 60)
        seen: set[tuple[str | None, str | None]] = set()
        stop, asked, late = False, 0, ""

        async def caller(number: int) -> None:
            nonlocal asked, late
            while not stop:
                if number % 2:
                    answer = await ask(live, PARAPHRASE)
                else:
                    new = {"x-cacheproxy-threshold": "1"}
                    answer = await live.ask(chat(next(others)), key=KEY, headers=new)
                assert answer.status == 200
                if number % 2:
                    assert answer.outcome == "hit", answer.reason
                    seen.add((answer.get("x-cacheproxy-similarity"), answer.get("x-cacheproxy-threshold")))
                elif answer.outcome == "miss":
                    late = answer.get("x-cacheproxy-entry") or late
                asked += 1

        callers = [asyncio.create_task(caller(number)) for number in range(4)]
        done = await examined(live, body(force=True))
        assert done["began"], done
        await serves(live, artefact.epoch)
        (deed, *_) = (await told(live, "/audit"))["deeds"]
        assert (deed["action"], deed["after"]) == ("encoders.promote", {"serving": artefact.epoch, "forced": True})
        stop = True
        await asyncio.gather(*callers)
        assert asked > 20
        assert len(seen) == 2, seen  # each epoch's similarity with its own threshold, and with no other
        in_use = (await told(live, "/encoders"))["in_use"]
        assert (in_use["epoch"], in_use["head"]["mode"]) == (base, "lora")

        async def caught_up() -> bool:
            waiting = (await told(live, "/encoders"))["in_use"]["waiting"]
            return bool(waiting == 0 and late in aside(tmp_path))

        await eventually_true(caught_up, "every entry has a vector")
        # What was encoded anew is what a fresh question's vector is, in its conversation, too.
        found = aside(tmp_path)
        fresh, _ = tuned.encode([QUESTION, history[2], history[0]])
        assert float(found[kept] @ fresh[0]) == pytest.approx(1.0, abs=1e-5)
        assert float(found[talked] @ in_context(fresh[1], [fresh[2]])) == pytest.approx(1.0, abs=1e-5)
    async with proxy(upstream, tmp_path) as live:
        assert (await told(live, "/encoders"))["in_use"]["searched"] == artefact.epoch
        again = await ask(live, PARAPHRASE)
        assert (again.outcome, again.get("x-cacheproxy-threshold")) == ("hit", f"{LEARNT:.4f}")
        assert (await talk(live, *history[:2], "and how much are they")).outcome == "hit"
        assert (await ask_admin(live, "POST", "/purge", {"id": kept})).status == 200
        assert (await ask(live, PARAPHRASE)).get("x-cacheproxy-entry") != kept

        async def forgotten() -> bool:
            return kept not in aside(tmp_path)

        await eventually_true(forgotten, "its vector went with it")
        assert (await change(live, {"rollback": True})).json()["epoch"] == base
        await serves(live, base)
        assert (await ask(live, QUESTION)).get("x-cacheproxy-threshold") == f"{PLAIN:.4f}"

        async def emptied() -> bool:
            return not aside(tmp_path)

        await eventually_true(emptied, "nothing of what serves no more is left")


async def test_what_a_stop_cut_short_goes_on_with_what_was_made(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artefact: Artefact
) -> None:
    encoded: list[str] = []
    whole = Slow._batch
    stuck = asyncio.Event()

    async def counted(self: Slow, texts: list[str]) -> Any:
        if len(encoded) >= 40 and not stuck.is_set():
            await asyncio.sleep(3600)
        encoded.extend(texts)
        return await whole(self, texts)

    async with proxy(upstream, tmp_path) as live:
        await fill(live, 100)
        monkeypatch.setattr(Slow, "_batch", counted)
        assert (await examined(live, body(force=True)))["began"]

        async def under_way() -> bool:
            return len(encoded) >= 40 and len(aside(tmp_path)) >= 32

        await eventually_true(under_way, "some are encoded", within_s=60)
    before = len(aside(tmp_path))
    stuck.set()
    encoded.clear()
    async with proxy(upstream, tmp_path) as live:
        await serves(live, artefact.epoch)
        assert len(encoded) <= 100 - before
        assert (await told(live, "/encoders"))["in_use"]["entries"] == 100
        assert (await ask(live, f"{UNRELATED} EGG number 37.")).outcome == "hit"


async def test_an_operator_cancels_it_and_the_one_before_serves_on(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artefact: Artefact
) -> None:
    go, whole, encoded = asyncio.Event(), Slow._batch, list[str]()

    async def held(self: Slow, texts: list[str]) -> Any:
        encoded.extend(texts)
        if len(encoded) > 70:
            await go.wait()
        return await whole(self, texts)

    async with proxy(upstream, tmp_path) as live:
        await fill(live, 100)
        await ask(live, QUESTION)
        base = (await told(live, "/encoders"))["in_use"]["searched"]
        assert (await change(live, {"cancel": True})).status == 404
        assert (await change(live, {"cancel": True, "rollback": True})).status == 400
        monkeypatch.setattr(Slow, "_batch", held)
        await change(live, body(force=True))

        async def under_way() -> bool:
            return (await told(live, "/encoders"))["progress"]["done"] > 0 and bool(aside(tmp_path))

        await eventually_true(under_way, "some are encoded", within_s=60)
        said = await asyncio.to_thread(CliRunner().invoke, main, ("federated", "cancel", "--url", live.admin_url))
        assert (said.exit_code, said.output.splitlines()[-1]) == (0, f"{artefact.epoch} was stopped")

        async def ended() -> bool:
            return (await told(live, "/encoders"))["progress"]["step"] == "failed" and not aside(tmp_path)

        await eventually_true(ended, "it ended, and nothing of it is left", within_s=10)
        go.set()
        found = await told(live, "/encoders")
        assert "an operator stopped it" in found["progress"]["problem"]
        assert found["in_use"]["searched"] == base
        assert (await ask(live, PARAPHRASE)).outcome == "hit"
        (deed, *_) = (await told(live, "/audit"))["deeds"]
        assert (deed["action"], deed["after"]) == ("encoders.cancel", {"serving": base, "forced": False})
    async with proxy(upstream, tmp_path) as live:
        assert (await told(live, "/encoders"))["progress"]["step"] == ""
        await change(live, body(force=True))  # and it may be promoted again
        await serves(live, artefact.epoch)
        assert (await ask(live, PARAPHRASE)).outcome == "hit"


async def test_what_encodes_is_examined_by_texts(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artefact: Artefact
) -> None:
    monkeypatch.setattr("cacheproxy.encoders_cli._POLL_S", 0.005)  # a tiny encoder is done at once
    (tmp_path / "data").mkdir(mode=0o700)
    tuned = open_tuned(tiny_settings(), ENCODERS.parent, artefact)
    base, random = tiny_encoder(), np.random.default_rng(0)
    texts: list[str] = []
    for at in range(1200):
        words = random.choice(WORDS, 4)
        texts += [" ".join(words), " ".join([*words[at % 4 :], *random.choice(WORDS, at % 4)])]
    near = np.einsum("ij,ij->i", tuned.encode(texts[::2])[0], tuned.encode(texts[1::2])[0])
    vectors = base.encode(texts)[0].astype("<f4")
    async with PairWriter(tmp_path / "data" / FILE, most=10_000) as writer:
        for at in range(1200):
            pair = row(
                f"k{at}",
                f"a{at}",
                right=bool(near[at] > LEARNT),  # as the changed encoder would have it
                category="default",
                base=base.fingerprint,
                a=vectors[2 * at].tobytes(),
                b=vectors[2 * at + 1].tobytes(),
                a_text=texts[2 * at] if at % 10 else "",
                b_text=texts[2 * at + 1] if at % 10 else "",
            )
            await writer.record(pair, writer.fence)
    async with proxy(upstream, tmp_path) as live:
        tried = await examined(live, body(), "?dry_run=true")
        assert (tried["began"], tried["dry_run"], tried["examining"]) == (False, True, False)
        found = tried["examined"]
        assert found["problems"] == [], found
        assert found["after"]["f05"] == pytest.approx(1.0)
        assert found["low"] > 0
        assert (await told(live, "/encoders"))["progress"]["step"] == ""

        async def cli(*words: str) -> Result:
            return await asyncio.to_thread(CliRunner().invoke, main, ("federated", *words, "--url", live.admin_url))

        write(tmp_path / "head", tiny_change(), manifest_of(base.fingerprint, thresholds={ANY: LEARNT}))
        gave = await cli("promote", str(tmp_path / "head"), "--dry-run", "--no-wait")
        assert (gave.exit_code, "is being examined: see GET /admin/v1/encoders" in gave.output) == (0, True)

        async def free() -> bool:
            return bool((await told(live, "/encoders"))["progress"]["step"] == "")

        await eventually_true(free, "it was examined", within_s=60)
        done = await cli("promote", str(tmp_path / "head"))
        assert done.exit_code == 0, done.output
        assert "encoding the texts of held-back pairs" in done.output
        assert f"{artefact.epoch} serves" in done.output
        assert len(exports(tmp_path)) == 1
        assert (await cli("rollback")).exit_code == 0
    with sqlite3.connect(tmp_path / "data" / FILE) as connection:
        connection.execute("UPDATE contents SET a_text = '', b_text = ''")
    async with proxy(upstream, tmp_path) as live:
        refused = await examined(live, body())
        assert not refused["began"]
        assert "federated.keep_texts" in refused["examined"]["problems"][0]

        async def dropped() -> bool:
            return exports(tmp_path) == []

        await eventually_true(dropped, "what was examined and does not serve leaves no export")


async def test_a_damaged_file_of_vectors_costs_a_start_nothing_but_time(
    upstream: ScriptedUpstream, tmp_path: Path, artefact: Artefact
) -> None:
    async with proxy(upstream, tmp_path) as live:
        base = str((await told(live, "/encoders"))["in_use"]["epoch"])
        kept = str((await ask(live, QUESTION)).get("x-cacheproxy-entry"))
        assert (await examined(live, body(force=True)))["began"]
        await serves(live, artefact.epoch)
        await eventually_true(lambda: _has(tmp_path, kept), "its vector is written down")
    damage(tmp_path / "data" / SIDE)
    async with proxy(upstream, tmp_path) as live:
        assert (await ask(live, PARAPHRASE)).outcome == "hit"  # of the encoder alone, or once it is made again
        await serves(live, artefact.epoch)
        again = await ask(live, PARAPHRASE)
        assert (again.outcome, again.get("x-cacheproxy-threshold")) == ("hit", f"{LEARNT:.4f}")
        assert kept in aside(tmp_path)
        assert (await told(live, "/encoders"))["before"] == [""]
        assert (await change(live, {"rollback": True})).json()["epoch"] == base
        await serves(live, base)
    assert set_aside(tmp_path)


async def _has(folder: Path, entry: str) -> bool:
    return entry in aside(folder)


def damage(file: Path) -> None:
    """Leave nothing that SQLite could read."""
    for one in file.parent.glob(f"{file.name}*"):
        one.write_bytes(b"\xff" * 4096)


def set_aside(folder: Path) -> list[Path]:
    return list((folder / "data").glob(f"{SIDE}.corrupt-*Z"))


def exports(folder: Path) -> list[str]:
    """Return the exports of encoders with changed layers."""
    return [one.name for one in (folder / "data" / "encoders").glob("*+lora_*") if one.is_dir()]


async def test_layers_of_another_encoder_are_refused(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    manifest, weights = packed()
    assert isinstance(manifest.changed, msgspec.Struct)
    other = msgspec.structs.replace(manifest, changed=msgspec.structs.replace(manifest.changed, depth=3))
    promote = {"manifest": msgspec.to_builtins(other), "weights": base64.b64encode(weights).decode()}
    async with proxy(upstream, tmp_path) as live:
        refused = await change(live, {"promote": promote, "force": True})
        assert "other tensors" in refused.assert_problem(400)["message"]
