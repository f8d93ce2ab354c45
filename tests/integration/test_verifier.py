"""A verifier from its making to its hits: trained, shown, measured and served; a damaged one stops the start."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.verify.artefact import CHEAP
from tests.support.artefacts import real_base, tiny_base, write_verifier
from tests.support.process import ServerExited, serving
from tests.support.proxy import ENCODERS, PARAPHRASE, QUESTION, chat, proxy_settings, started

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRAP = "How do I reset my password 5 times?"
OTHER_TRAP = "How do I reset my password 6 times?"


async def command(*words: str, cwd: Path) -> tuple[int, str, str]:
    """Run the command line with one thread for each engine: the machine may be busy."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cacheproxy", *words),
        cwd=cwd,
        env={**kept, "HOME": str(cwd), "CACHEPROXY_ENCODER__CACHE_DIR": str(ENCODERS), "OMP_NUM_THREADS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(240):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_paraphrase_is_a_verified_hit_and_a_trap_is_vetoed(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, other_key: str
) -> None:
    manifest = write_verifier(tmp_path / "verifier", real_base())
    settings = proxy_settings(upstream.url, tmp_path / "data", verifier={"path": str(tmp_path / "verifier")})
    async with started(settings) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        hit = await proxy.ask(chat(PARAPHRASE), key=key)
        assert (hit.outcome, hit.tier) == ("hit", "semantic")
        assert float(hit.get("x-cacheproxy-probability") or 0) > 0.9
        await proxy.fill(chat(TRAP), key=other_key)
        missed = await proxy.ask(chat(OTHER_TRAP), key=other_key)
        assert (missed.outcome, missed.reason) == ("miss", "veto_number")
    assert manifest.fingerprint.startswith("test/")


async def test_a_damaged_verifier_or_one_of_another_encoder_stops_the_start(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    write_verifier(tmp_path / "damaged", real_base())
    whole = (tmp_path / "damaged" / CHEAP).read_bytes()
    (tmp_path / "damaged" / CHEAP).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    write_verifier(tmp_path / "tiny", tiny_base(tmp_path / "base"))
    for folder, told in (("damaged", "sha256"), ("tiny", "no other encoder"), ("nowhere", r"manifest\.json")):
        settings = proxy_settings(upstream.url, tmp_path / "data", verifier={"path": str(tmp_path / folder)})
        with pytest.raises(ConfigError, match=told):
            async with started(settings):
                pass


@pytest.mark.slow
async def test_serve_refuses_a_damaged_verifier_with_one_clear_line(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    write_verifier(tmp_path / "damaged", real_base())
    (tmp_path / "damaged" / CHEAP).write_bytes(b"")
    with pytest.raises(ServerExited) as caught:
        async with serving(tmp_path, upstream.url, "--verifier", str(tmp_path / "damaged")):
            pass
    assert caught.value.code == 2
    assert "does not have the sha256" in caught.value.said
    assert "Traceback" not in caught.value.said


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_verifier_is_trained_shown_and_measured_by_the_command_line(tmp_path: Path) -> None:
    things = [f"{thing} {end}" for thing in ("account", "card", "bill", "phone") for end in ("today", "now", "abroad")]
    rows = [{"a": f"How do I open my {one}?", "b": f"how to open my {one}", "label": 1} for one in things * 4]
    rows += [{"a": f"Can I close my {one}?", "b": f"Can I open the {one}?", "label": 0} for one in things * 4]
    for name, half in (("one.jsonl", rows[:60]), ("two.jsonl", rows[36:])):
        (tmp_path / name).write_text("\n".join(map(json.dumps, half)))
    (tmp_path / "odd.jsonl").write_text('{"a": "x", "b": "y", "score": 3.5}')
    train = ("verifier", "train", "--pairs", "one.jsonl", "two.jsonl", "odd.jsonl", "--alone", "--from", "base")
    code, out, err = await command(*train, "--visits", "64", "--out", "made", cwd=tmp_path)
    assert code == 0, err
    assert "64 pairs seen, from the base encoder" in out
    assert "training_lines_skipped" in err
    assert "Traceback" not in err

    code, shown, _ = await command("verifier", "show", "made", cwd=tmp_path)
    assert (code, shown) == (0, out)
    code, shown, _ = await command("verifier", "show", "made", "--json", cwd=tmp_path)
    assert [one["name"] for one in json.loads(shown)["sources"]] == ["one.jsonl", "two.jsonl"]

    code, report, err = await command(
        "eval", "pairs", "two.jsonl", "--verifier", "made", "--baseline", "cosine", "--json", cwd=tmp_path
    )
    assert code == 0, err
    assert json.loads(report)["n"] == len(rows[36:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("train", "--pairs", "bad.jsonl", "--out", "o", "--from", "base"), 2, "bad.jsonl:2: "),
        (("train", "--pairs", "odd.jsonl", "--out", "o", "--from", "base"), 2, "odd.jsonl:1: "),
        (("train", "--pairs", "none.jsonl", "--out", "o"), 2, "none.jsonl"),
        (("train", "--pairs", "odd.jsonl"), 2, "--out"),
        (("train", "--pairs", "odd.jsonl", "--out", "o", "--from", "nowhere"), 2, "manifest.json"),
        (("train", "--pairs", "odd.jsonl", "--out", "o", "--from", "base", "--licence", "CC0"), 2, "FILE=LICENCE"),
        (("train", "--pairs", "odd.jsonl", "--out", "bad.jsonl"), 2, "bad.jsonl"),
        (("show", "."), 2, "manifest.json"),
    ],
)
async def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, words: tuple[str, ...], code: int, told: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"a": "x", "b": "y", "label": 1}\n{"a": "my secret')
    (tmp_path / "odd.jsonl").write_text('{"a": "my secret", "b": "y", "score": 3.5}')
    ended, _, err = await command("verifier", *words, cwd=tmp_path)
    assert ended == code, err
    assert told in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "my secret" not in err
