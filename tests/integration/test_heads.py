"""Another similarity head takes the place of the one that serves: examined, under load, undone, and after a restart."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from cacheproxy import opening
from cacheproxy.cli import main
from cacheproxy.embed.head import Head
from cacheproxy.embed.headfile import ANY, Artefact, pack, write
from cacheproxy.learn.pairfile import FILE
from cacheproxy.learn.pairwriter import PairWriter
from cacheproxy.policy.loader import POLICY_FILE, find_pack, load_pack
from tests.support.admin import ask_admin, told
from tests.support.heads import manifest_of, rotation
from tests.support.pairs import row
from tests.support.polling import eventually_true
from tests.support.proxy import PARAPHRASE, QUESTION, UNRELATED, chat, proxy_settings, started
from tests.support.verifiers import StepScorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from click.testing import Result

    from cacheproxy.model import Verification
    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-test"
PLAIN = 0.7
"""Threshold of the encoder alone."""
LEARNT = 0.9


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging of the test process alone."""
    monkeypatch.setattr("cacheproxy.logs.configure", lambda _: None)


def written_pack(folder: Path, verify_from: float | None = None, threshold: float = PLAIN) -> str:
    """Write a pack of one category that thresholds decide, or a verifier from some cosine on, and return where."""
    folder.mkdir(exist_ok=True)
    head = (
        'schema = 1\nname = "test"\ndescription = "x"\ndefault_category = "default"\n'
        f"[categories.default]\nsemantic = true\nverify = {'false' if verify_from is None else 'true'}\nttl_s = 1000\n"
    )
    verified = "" if verify_from is None else f"verify_from = {verify_from}\n"
    encoders = [
        f'[encoders.{name}]\nfingerprint = "{one.fingerprint}"\ncalibrated_on = "x"\n'
        f"{verified}thresholds = {{ default = {threshold} }}\n"
        for name, one in load_pack(find_pack("balanced")).encoders.items()
    ]
    (folder / POLICY_FILE).write_text(head + "".join(encoders), encoding="utf-8")
    return str(folder)


@asynccontextmanager
async def proxy(upstream: ScriptedUpstream, folder: Path, verify_from: float | None = None) -> AsyncIterator[Proxy]:
    settings = proxy_settings(
        upstream.url,
        folder / "data",
        policies={"pack": written_pack(folder / "pack", verify_from)},
        verifier={"path": "off" if verify_from is None else ""},
        server={"lookup_timeout_ms": 2000},
        store={"url": "sqlite:///entries.sqlite3"},
    )
    async with started(settings) as live:
        yield live


def squeezed(seed: int = 4) -> Head:
    """Return a head that changes cosines: it tells by few directions, most of them at random."""
    matrix = rotation(384, seed, k=16).matrix.copy()
    matrix[:8] *= 3.0
    return Head(matrix=matrix)


def body_of(head: Head, base: str, threshold: float = LEARNT, **more: Any) -> dict[str, Any]:
    manifest, weights = pack(head, manifest_of(base, thresholds={ANY: threshold}))
    promote = {"manifest": msgspec.to_builtins(manifest), "weights": base64.b64encode(weights).decode()}
    return {"promote": promote, **more}


def epoch_of(base: str, head: Head, threshold: float = LEARNT) -> str:
    return Artefact(manifest=pack(head, manifest_of(base, thresholds={ANY: threshold}))[0], head=head).epoch


async def base_of(live: Proxy) -> str:
    return str((await told(live, "/encoders"))["in_use"]["epoch"])


async def change(live: Proxy, body: dict[str, Any], query: str = "") -> Answered:
    return await ask_admin(live, "POST", f"/encoders{query}", body)


async def serves(live: Proxy, epoch: str) -> None:
    async def done() -> bool:
        found = await told(live, "/encoders")
        return bool(found["in_use"]["searched"] == epoch and found["progress"]["step"] == "")

    await eventually_true(done, f"{epoch} serves", within_s=30)


async def ask(live: Proxy, text: str) -> Answered:
    return await live.ask(chat(text), key=KEY)


async def test_a_head_takes_over_and_goes_again(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    head = squeezed()
    async with proxy(upstream, tmp_path) as live:
        base = await base_of(live)
        epoch = epoch_of(base, head, 0.5)
        await ask(live, QUESTION)
        plain = await ask(live, PARAPHRASE)
        assert (plain.outcome, plain.get("x-cacheproxy-threshold")) == ("hit", f"{PLAIN:.4f}")
        done = await change(live, body_of(head, base, 0.5, force=True))
        assert done.status == 200, done.body
        assert done.json()["began"]
        assert done.json()["examined"]["problems"][0].startswith("too few labelled pairs")
        await serves(live, epoch)
        after = await ask(live, PARAPHRASE)
        assert after.get("x-cacheproxy-threshold") == "0.5000"
        assert after.get("x-cacheproxy-similarity") != plain.get("x-cacheproxy-similarity")
        in_use = (await told(live, "/encoders"))["in_use"]
        assert (in_use["epoch"], in_use["head"]["epoch"], in_use["head"]["dim"]) == (base, epoch, 16)
        (deed, *_) = (await told(live, "/audit"))["deeds"]
        assert (deed["action"], deed["after"]) == ("encoders.promote", {"serving": epoch, "forced": True})
    async with proxy(upstream, tmp_path) as live:  # it serves from the start on
        assert (await told(live, "/encoders"))["in_use"]["searched"] == epoch
        again = await ask(live, PARAPHRASE)
        assert (again.outcome, again.get("x-cacheproxy-threshold")) == ("hit", "0.5000")
        assert (await change(live, {"rollback": True})).json()["epoch"] == base
        await serves(live, base)
        assert (await ask(live, PARAPHRASE)).get("x-cacheproxy-threshold") == f"{PLAIN:.4f}"
        assert (await told(live, "/encoders"))["in_use"]["head"] is None
        refused = await change(live, {"rollback": True})
        refused.assert_problem(404)


async def test_no_request_fails_and_none_is_answered_from_two_epochs(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    head = squeezed()
    async with proxy(upstream, tmp_path) as live:
        base = await base_of(live)
        await ask(live, QUESTION)
        for number in range(40):
            await ask(live, f"{UNRELATED} Egg number {number * 37}.")
        seen: set[tuple[str | None, str | None]] = set()
        stop, asked = False, 0

        async def caller(number: int) -> None:
            nonlocal asked
            while not stop:
                answer = await ask(live, PARAPHRASE if number % 2 else f"{UNRELATED} Again {asked}.")
                assert answer.status == 200
                if number % 2:
                    assert answer.outcome == "hit", answer.reason
                    seen.add((answer.get("x-cacheproxy-similarity"), answer.get("x-cacheproxy-threshold")))
                asked += 1

        callers = [asyncio.create_task(caller(number)) for number in range(6)]
        for body, epoch in (
            (body_of(head, base, 0.5, force=True), epoch_of(base, head, 0.5)),
            ({"rollback": True}, base),
            (body_of(head, base, 0.5, force=True), epoch_of(base, head, 0.5)),
        ):
            assert (await change(live, body)).status == 200
            await serves(live, epoch)
        stop = True
        await asyncio.gather(*callers)
        assert asked > 50
        assert len({similarity for similarity, _ in seen}) == 2
        assert len(seen) == 2  # each similarity with its own threshold, and with no other


# Where a verifier decides


class Recording(StepScorer):
    """Notes the cosines that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.cosines: list[float] = []

    def verify(self, asked: str, kept: Iterable[tuple[str, float]]) -> list[Verification]:
        kept = list(kept)
        self.cosines += [cosine for _, cosine in kept]
        return super().verify(asked, kept)


@pytest.mark.parametrize("verify_from", [0.3, 0.999])
async def test_a_verifier_is_told_the_encoders_cosine_and_the_pack_says_from_where_on(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify_from: float
) -> None:
    scorer = Recording()
    monkeypatch.setattr(opening, "open_verifier", lambda settings: scorer)
    sure = f"{QUESTION} p0.95"
    async with proxy(upstream, tmp_path, verify_from) as live:
        base = await base_of(live)
        await ask(live, QUESTION)
        before = await ask(live, sure)
        assert before.outcome == ("hit" if verify_from < 0.5 else "miss")
        told_before, scorer.cosines = scorer.cosines, []
        assert (await change(live, body_of(squeezed(), base, 0.5, force=True))).json()["began"]
        await serves(live, epoch_of(base, squeezed(), 0.5))
        after = await ask(live, sure if verify_from < 0.5 else f"{QUESTION} p0.96")
        assert after.outcome == ("hit" if verify_from < 0.5 else "miss"), after.reason
        if verify_from < 0.5:
            assert scorer.cosines == pytest.approx(told_before, abs=1e-5)
            assert after.get("x-cacheproxy-similarity") != before.get("x-cacheproxy-similarity")
        else:
            assert scorer.cosines == []  # the head finds it near; the pack's 0.999 of the encoder holds all the same


# By this proxy's own pairs


SIGNAL = 16


def separating() -> Head:
    """Return a head that sees only what the made pairs differ in."""
    return Head(matrix=np.eye(SIGNAL, 384, dtype=np.float32))


async def collected(folder: Path, count: int = 900) -> None:
    """Write labelled pairs of questions that the encoder hardly tells apart: what they mean is in few components."""
    base = next(
        one.fingerprint for one in load_pack(find_pack("balanced")).encoders.values() if "fp32" in one.fingerprint
    )
    random = np.random.default_rng(0)

    def vector(meaning: np.ndarray) -> np.ndarray:
        made = random.standard_normal(384).astype(np.float32) * random.uniform(0.01, 0.045)
        made[:SIGNAL] = meaning + random.standard_normal(SIGNAL) * 0.02
        return made / np.linalg.norm(made)

    async with PairWriter(folder / FILE, most=10_000) as writer:
        for number in range(count):
            meaning = random.standard_normal(SIGNAL).astype(np.float32)
            meaning /= np.linalg.norm(meaning)
            right = number % 2 == 0
            other = meaning if right else meaning + random.standard_normal(SIGNAL).astype(np.float32) * 0.18
            other = other / np.linalg.norm(other)
            await writer.record(
                row(
                    f"k{number}",
                    f"a{number}",
                    right=right,
                    category="default" if number % 9 else "renamed since",
                    base=base,
                    a=vector(meaning).astype("<f4").tobytes(),
                    b=vector(other).astype("<f4").tobytes(),
                ),
                writer.fence,
            )


async def test_a_head_that_is_better_here_passes_and_one_that_is_worse_does_not(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    await collected(tmp_path / "data")
    async with proxy(upstream, tmp_path) as live:
        base = await base_of(live)
        worse = (await change(live, body_of(squeezed(), base, 0.7))).json()
        assert not worse["began"]
        assert worse["examined"]["pairs"] > 100
        assert any("not better with confidence" in problem for problem in worse["examined"]["problems"])
        tried = (await change(live, body_of(separating(), base, 0.9), "?dry_run=true")).json()
        better = (await change(live, body_of(separating(), base, 0.9))).json()
        assert better["began"], better
        assert better["examined"] == tried["examined"]
        assert better["examined"]["low"] > 0
        assert better["examined"]["after"]["f05"] > better["examined"]["before"]["f05"]
        await serves(live, epoch_of(base, separating()))


async def test_an_operator_promotes_and_goes_back_by_the_command_line(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    await collected(tmp_path / "data")
    async with proxy(upstream, tmp_path) as live:
        base = await base_of(live)
        await ask(live, QUESTION)

        async def cli(*words: str) -> Result:
            told = ("federated", *words, "--url", live.admin_url)
            return await asyncio.to_thread(CliRunner().invoke, main, told)

        for name, head in (("good", separating()), ("bad", squeezed())):
            write(tmp_path / name, head, manifest_of(base, thresholds={ANY: 0.9}))
        refused = await cli("promote", str(tmp_path / "bad"))
        assert (refused.exit_code, "not better with confidence" in refused.output) == (1, True)
        tried = await cli("promote", str(tmp_path / "good"), "--dry-run")
        assert (tried.exit_code, "would serve" in tried.output) == (0, True)
        done = await cli("promote", str(tmp_path / "good"))
        assert done.exit_code == 0, done.output
        assert f"{epoch_of(base, separating())} serves" in done.output
        again = await cli("promote", str(tmp_path / "good"))
        assert (again.exit_code, "serves already" in again.output) == (1, True)
        back = await cli("rollback")
        assert (back.exit_code, f"{base} serves" in back.output) == (0, True)
        nothing = await cli("rollback")
        assert (nothing.exit_code, "nothing served before" in nothing.output) == (1, True)
        nothing = await cli("cancel")
        assert (nothing.exit_code, "nothing is on its way" in nothing.output) == (1, True)
        missing = await cli("promote", str(tmp_path))
        assert (missing.exit_code, "give the folder of a trained head" in missing.output) == (2, True)


async def test_a_head_that_does_not_pass_is_not_promoted(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with proxy(upstream, tmp_path) as live:
        base = await base_of(live)
        done = await change(live, body_of(squeezed(), base))
        assert (done.status, done.json()["began"]) == (200, False)
        assert done.json()["examined"]["problems"]
        found = await told(live, "/encoders")
        assert (found["in_use"]["searched"], found["heads"]) == (base, [])


async def test_a_dry_run_changes_nothing(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with proxy(upstream, tmp_path) as live:
        base = await base_of(live)
        before = await told(live, "/encoders")
        done = await change(live, body_of(squeezed(), base, force=True), "?dry_run=true")
        assert (done.status, done.json()["began"], done.json()["dry_run"]) == (200, False, True)
        assert await told(live, "/encoders") == before
        assert not (tmp_path / "data" / "heads").exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda body, base: body["promote"]["manifest"].update(base="another"), "was made for the encoder another"),
        (lambda body, base: body["promote"]["manifest"].update(sha256="00"), "sha256"),
        (lambda body, base: body["promote"]["manifest"].update(more=1), "more"),
        (lambda body, base: body["promote"]["manifest"].pop("thresholds"), "thresholds"),
        (lambda body, base: body.update(rollback=True), "give one of these"),
        (lambda body, base: body.clear(), "give one of these"),
        (lambda body, base: body["promote"].update(weights="%%%"), "weights"),
    ],
    ids=["other encoder", "digest", "unknown field", "no thresholds", "both", "neither", "no base64"],
)
async def test_what_is_no_head_for_this_proxy_is_refused(
    upstream: ScriptedUpstream, tmp_path: Path, spoil: Any, says: str
) -> None:
    async with proxy(upstream, tmp_path) as live:
        base = await base_of(live)
        body = body_of(squeezed(), base, force=True)
        spoil(body, base)
        error = (await change(live, body)).assert_problem(400)
        assert says in error["message"]


async def test_a_head_for_vectors_of_another_length_is_refused(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with proxy(upstream, tmp_path) as live:
        base = await base_of(live)
        error = (await change(live, body_of(rotation(64), base, force=True))).assert_problem(400)
        assert "64" in error["message"]


async def test_a_damaged_head_on_disk_leaves_the_encoder_alone(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    head = squeezed()
    async with proxy(upstream, tmp_path) as live:
        base = await base_of(live)
        await ask(live, QUESTION)
        await change(live, body_of(head, base, 0.5, force=True))
        await serves(live, epoch_of(base, head, 0.5))
    file = next((tmp_path / "data" / "heads").glob("*/head.safetensors"))
    file.write_bytes(np.random.default_rng(0).bytes(1000))
    async with proxy(upstream, tmp_path) as live:
        assert (await told(live, "/encoders"))["in_use"]["searched"] == base
        assert (await ask(live, PARAPHRASE)).outcome == "hit"
