"""The real engines: a SuperLink and SuperNodes as processes, one of which is killed; and Flower's simulation by Ray."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy.embed import headfile
from cacheproxy.federation.children import descendants
from cacheproxy.federation.keys import make_keys, public_half
from cacheproxy.learn.pairfile import FILE
from cacheproxy.learn.pairwriter import PairWriter
from cacheproxy.policy.loader import find_pack, load_pack
from tests.federated.fleet import BASE
from tests.federated.test_apps import CANARY, write_pairs
from tests.federated.test_layers import rows
from tests.federated.topics import DIM
from tests.integration.test_heads import written_pack
from tests.support.admin import ask_admin
from tests.support.pairs import row
from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.proxy import ENCODERS, PARAPHRASE, QUESTION, UNRELATED, chat, proxy_settings, started
from tests.support.tiny import tiny_encoder, tiny_source
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.proxy import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
NODES = ("one", "two", "three")
ENCODER = next(
    one.fingerprint for one in load_pack(find_pack("balanced")).encoders.values() if "fp32" in one.fingerprint
)
"""Of the encoder that a proxy has by default on a CPU."""
ENCODER_DIM = 384
PLAIN = 0.45
"""Threshold of the encoder alone, near the best one for the made-up pairs."""


@asynccontextmanager
async def cacheproxy(log: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command of `cacheproxy federated`, ended with the block."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cacheproxy",
            "federated",
            *words,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"CACHEPROXY_ENCODER__CACHE_DIR": str(ENCODERS), "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def heard(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return the lines of progress of one kind."""
    file = folder / "progress.jsonl"
    lines = [msgspec.json.decode(line) for line in file.read_bytes().splitlines()] if file.exists() else []
    return [line for line in lines if line["event"] == event]


async def asked_without_end(live: Proxy, seen: list[int]) -> None:
    """Ask a proxy, the same question and others, and note every status."""
    while True:
        for text in (QUESTION, f"{UNRELATED} This is number {len(seen)}."):
            seen.append((await live.ask(chat(text), key="sk-load")).status)


async def goes_on(seen: list[int]) -> None:
    """Return once more requests were answered."""
    before = len(seen)
    await eventually(lambda: len(seen) > before + 20, "it goes on", within_s=60)


async def head_of(live: Proxy) -> str:
    """Return the epoch that answers; "" while a change is on its way."""
    found = (await ask_admin(live, "GET", "/encoders")).json()
    return str(found["in_use"]["searched"]) if found["progress"]["step"] == "" else ""


async def test_a_run_over_tls_survives_the_death_of_a_node_and_its_head_passes_the_gate_of_a_proxy_under_load(
    tmp_path: Path,
) -> None:
    """And serves there, and goes again, and no request fails for any of it. Nothing is forced."""
    keys, out, port = tmp_path / "keys", tmp_path / "out", str(free_port())
    make_keys(keys, ["localhost", "127.0.0.1"], NODES)
    for seed, name in enumerate(NODES, 1):
        (tmp_path / name).mkdir(mode=0o700)
        await write_pairs(tmp_path / name / FILE, seed, base=ENCODER, dim=ENCODER_DIM, n=1500 if name == "one" else 300)
    served = ["serve", "--dir", str(out), "--port", port, "--certificates", str(keys), "--data-dir", str(tmp_path)]
    served += [word for name in NODES for word in ("--node", str(keys / f"{name}.pub"))]
    served += ["--key", str(keys / "signing.pem"), "--base", ENCODER, "--dim", str(ENCODER_DIM)]
    served += ["--rounds", "2", "--quorum", "2", "--first", "3", "--deadline", "90", "--lr", "0.02"]
    family: set[int] = set()
    async with AsyncExitStack() as stack:
        # Node one stands beside a live proxy, and reads the pairs in its data directory.
        upstream = await stack.enter_async_context(ScriptedUpstream())
        signer = public_half(keys / "signing.pem")
        chosen = proxy_settings(
            upstream.url,
            tmp_path / "one",
            encoder={"cache_dir": str(ENCODERS), "head_keys": signer},
            policies={"pack": written_pack(tmp_path / "pack", threshold=PLAIN)},
            verifier={"path": "off"},
        )
        live = await stack.enter_async_context(started(chosen))
        server = await stack.enter_async_context(cacheproxy(tmp_path / "serve.log", *served))
        nodes = {}
        for name in NODES:
            joined = ["join", "--superlink", f"localhost:{port}", "--data-dir", str(tmp_path / name)]
            joined += ["--root-certificates", str(keys / "ca.crt"), "--node-key", str(keys / f"{name}.key")]
            nodes[name] = await stack.enter_async_context(cacheproxy(tmp_path / f"{name}.log", *joined))
        await eventually(lambda: bool(heard(out, "asked_to_train")), "a round began", within_s=200)
        assert heard(out, "begun")[0]["nodes"] == 3
        for victim in (*descendants(nodes["three"].pid), nodes["three"].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(300):
            code = await server.wait()
        for one in nodes.values():
            family |= set(descendants(one.pid)) if one.returncode is None else set()
        statuses: list[int] = []
        load = asyncio.create_task(asked_without_end(live, statuses))
        plain, artefact = await head_of(live), headfile.read(out / "final", [signer])
        for command, serving, threshold in (
            (["promote", str(out / "final")], artefact.epoch, artefact.manifest.thresholds["*"]),
            (["rollback"], plain, PLAIN),
        ):
            log = tmp_path / f"{command[0]}.log"
            async with cacheproxy(log, *command, "--url", live.admin_url) as change, asyncio.timeout(120):
                assert await change.wait() == 0, log.read_text()
            assert await head_of(live) == serving
            await goes_on(statuses)
            hit = await live.ask(chat(PARAPHRASE), key="sk-load")
            assert hit.get("x-cacheproxy-threshold") == f"{threshold:.4f}"
        load.cancel()
        assert set(statuses) == {200}
        deeds = (await ask_admin(live, "GET", "/audit")).json()["deeds"]
        [promoted] = [one["after"] for one in deeds if one["action"] == "encoders.promote"]
        assert promoted == {"serving": artefact.epoch, "forced": False}
    said = (tmp_path / "serve.log").read_text()
    assert code == 0, said
    missed = [line["refused"] for kind in ("round", "refused", "no_quorum") for line in heard(out, kind)]
    assert [one for one in missed if one.get("silent")], "the node that died is told where it was missed first"
    assert all(set(one) <= {"silent"} for one in missed), missed
    assert artefact.manifest.key == signer
    assert artefact.manifest.round == 2
    assert artefact.manifest.metrics["f05"] > heard(out, "begun")[0]["f05"]
    assert f"cacheproxy federated promote {out / 'final'}" in said
    assert CANARY not in said + (out / "progress.jsonl").read_text() + (out / "flower" / "run.log").read_text()
    assert family, "the two that were left had processes of their own"
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), "all ended", within_s=20)


async def test_a_simulation_makes_the_same_head_by_ray_and_in_one_process(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl.gz"
    with gzip.open(pairs, "wt") as file:
        for at in range(240):
            thing, other = f"part {at % 60}", f"part {(at + 7) % 60}"
            told = {"a": f"How do I order {thing} ({at})?", "label": int(at % 2 == 0)}
            told["b"] = f"Where can I buy {thing if at % 2 == 0 else other} (no. {at})?"
            file.write(json.dumps(told) + "\n")
    simulated = ["simulate", "--pairs", str(pairs), "--clients", "3", "--rounds", "2", "--data-dir", str(tmp_path)]
    for engine, more in (("ray", []), ("in-process", ["--in-process"])):
        log = tmp_path / f"{engine}.log"
        async with cacheproxy(log, *simulated, *more, "--out", str(tmp_path / engine)) as run, asyncio.timeout(300):
            code = await run.wait()
        assert code == 0, log.read_text()
        assert "240 pairs, " in log.read_text()
    heads = [headfile.read(tmp_path / engine / "final") for engine in ("ray", "in-process")]
    assert heads[0].epoch == heads[1].epoch
    assert (heads[0].manifest.round, heads[0].manifest.metrics["nodes"]) == (2, 3.0)


async def test_an_impossible_run_ends_with_the_reason(tmp_path: Path) -> None:
    """No node comes, and the settings of the second contradict themselves."""
    port, log = str(free_port()), tmp_path / "log"
    served = ["serve", "--dir", str(tmp_path / "out"), "--port", port, "--base", BASE, "--dim", str(DIM)]
    for more, code, why in (
        (["--wait", "2"], 1, "0 of at least 2 nodes were there after 2 s; start more with"),
        (["--strategy", "krum"], 2, "krum against 1 hostile nodes needs a quorum of 5"),
    ):
        async with cacheproxy(log, *served, *more) as run, asyncio.timeout(120):
            assert await run.wait() == code, log.read_text()
        assert why in log.read_text()


async def written_texts(file: Path, seed: int) -> None:
    """Write a proxy's own file of training pairs with their texts, by the tiny encoder."""
    made = rows(seed, 160)
    async with PairWriter(file, 10_000) as writer:
        for at, (kept, asked) in enumerate(made.texts or ()):
            pair = row(
                f"{seed} k {at}",
                f"{seed} a {at}",
                right=bool(made.right[at]),
                category="faq",
                base=tiny_encoder().fingerprint,
                a=made.a[at].tobytes(),
                b=made.b[at].tobytes(),
                a_text=kept,
                b_text=asked,
            )
            await writer.record(pair, writer.fence)


async def test_adapters_are_trained_by_nodes_of_their_own(tmp_path: Path) -> None:
    out, port, encoder = tmp_path / "out", str(free_port()), str(tiny_source().directory)
    for seed, name in enumerate(NODES[:2], 1):
        (tmp_path / name).mkdir(mode=0o700)
        await written_texts(tmp_path / name / FILE, seed)
    served = ["serve", "--dir", str(out), "--port", port, "--data-dir", str(tmp_path), "--encoder", encoder]
    served += ["--mode", "lora", "--rank", "4", "--rounds", "1", "--quorum", "2", "--deadline", "120"]
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(cacheproxy(tmp_path / "serve.log", *served))
        for name in NODES[:2]:
            joined = ["join", "--superlink", f"127.0.0.1:{port}", "--data-dir", str(tmp_path / name)]
            await stack.enter_async_context(cacheproxy(tmp_path / f"{name}.log", *joined, "--encoder", encoder))
        async with asyncio.timeout(360):
            code = await server.wait()
    assert code == 0, (tmp_path / "serve.log").read_text()
    made = headfile.read(out / "final")
    assert (made.manifest.mode, made.manifest.round, made.manifest.base) == ("lora", 1, tiny_encoder().fingerprint)
    assert made.manifest.metrics["nodes"] == 2
