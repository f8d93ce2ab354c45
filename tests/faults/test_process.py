"""The process as an operator sees it: signals, crashes, damaged files, a second instance, and what its logs tell."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support.openai_wire import completion, encode, events
from tests.support.polling import eventually, eventually_true
from tests.support.process import ServerExited, ServerProcess, serving
from tests.support.proxy import PARAPHRASE, QUESTION, Proxy, answered, chat
from tests.support.rawhttp import Connection, Truncated, request_bytes
from tests.support.upstream import CUT, Hold, ScriptedUpstream, answer, stream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.rawhttp import Exchange

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

EVENTS = events("one two three four")
TOPICS = ["Rome", "Oslo", "Lima", "Cairo", "Quito", "Hanoi", "Accra", "Sofia"]


def about(topic: str) -> dict[str, Any]:
    return chat(f"How many people live in {topic}?")


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


async def open_streams(proxy: Proxy, count: int) -> list[Exchange]:
    """Open streams for different questions and read the first events of each."""
    exchanges = [await proxy.begin(chat(f"Question {n}", stream=True), key=f"sk-{n}") for n in range(count)]
    for exchange in exchanges:
        await exchange.until(EVENTS[1])
    return exchanges


async def refuses(proxy: Proxy) -> bool:
    """Whether no new request is taken."""
    try:
        return (await proxy.call("GET", "/readyz")).status == 503
    except (OSError, Truncated):
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_polite_signal_lets_streams_in_flight_finish(
    upstream: ScriptedUpstream, tmp_path: Path, number: signal.Signals
) -> None:
    release = asyncio.Event()
    upstream.always(stream(*EVENTS[:2], Hold(release), *EVENTS[2:]))
    async with serving(tmp_path, upstream.url) as server:
        exchanges = await open_streams(server.proxy, 20)
        server.send(number)
        await eventually_true(lambda: refuses(server.proxy), "new requests are refused")
        release.set()
        answers = await asyncio.gather(*(exchange.rest() for exchange in exchanges))
        assert {(one.complete, one.body) for one in answers} == {(True, b"".join(EVENTS))}
        assert await server.wait() == 0
    async with serving(tmp_path, upstream.url) as server:
        for question in range(20):
            assert await server.proxy.cached(chat(f"Question {question}"), key=f"sk-{question}")


async def test_a_second_signal_ends_the_process_at_once(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.always(stream(*EVENTS[:2], Hold(asyncio.Event())))
    async with serving(tmp_path, upstream.url) as server:
        exchanges = await open_streams(server.proxy, 3)
        server.send(signal.SIGTERM)
        await eventually_true(lambda: refuses(server.proxy), "new requests are refused")
        server.send(signal.SIGTERM)
        await server.wait(within_s=5.0)
        assert not any([(await exchange.rest()).complete for exchange in exchanges])


async def test_the_drain_has_a_limit(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.always(stream(*EVENTS[:2], Hold(asyncio.Event())))
    async with serving(tmp_path, upstream.url, environ={"CACHEPROXY_SERVER__DRAIN_S": "1"}) as server:
        exchanges = await open_streams(server.proxy, 3)
        server.send(signal.SIGTERM)
        await server.wait(within_s=8.0)
        assert not any([(await exchange.rest()).complete for exchange in exchanges])


async def test_a_reload_disturbs_nobody(upstream: ScriptedUpstream, tmp_path: Path, key: str) -> None:
    async with serving(tmp_path, upstream.url) as server:
        await server.proxy.fill(chat(), key=key)
        release = asyncio.Event()
        upstream.play(stream(*EVENTS[:2], Hold(release), *EVENTS[2:]))
        [exchange] = await open_streams(server.proxy, 1)
        logged = len(server.events)
        server.send(signal.SIGHUP)
        await eventually(lambda: len(server.events) > logged, "the reload is logged")
        for text in (QUESTION, PARAPHRASE):
            assert (await server.proxy.ask(chat(text), key=key)).outcome == "hit"
        release.set()
        assert (await exchange.rest()).complete
        assert await server.stop() == 0


async def load(proxy: Proxy, lane: int, acknowledged: dict[str, str]) -> None:
    """Ask new questions until the server dies; note the answers it said were stored."""
    for number in range(10_000):
        text = f"What is {lane} plus {number}?"
        try:
            told = await proxy.ask(chat(text), key="sk-load", headers={"x-cacheproxy-tier": "exact"})
        except (OSError, Truncated):
            return
        if told.complete and told.status == 200 and "stored" in told.cache_status.parameters:
            acknowledged[text] = told.content


@pytest.mark.parametrize("wanted", [1, 25, 120])
async def test_a_crash_under_load_loses_no_acknowledged_entry(
    upstream: ScriptedUpstream, tmp_path: Path, wanted: int
) -> None:
    acknowledged: dict[str, str] = {}
    async with serving(tmp_path, upstream.url) as server:
        lanes = [asyncio.create_task(load(server.proxy, lane, acknowledged)) for lane in range(8)]
        await eventually(lambda: len(acknowledged) >= wanted, "entries are acknowledged", within_s=20)
        server.send(signal.SIGKILL)
        await asyncio.gather(*lanes)
        await server.wait()
    upstream.reset()
    began_s = time.monotonic()
    async with serving(tmp_path, upstream.url) as server:
        assert time.monotonic() - began_s < 15
        for text, content in acknowledged.items():
            hit = await server.proxy.ask(chat(text), key="sk-load")
            assert (hit.outcome, hit.content) == ("hit", content), text
        assert upstream.calls == 0
        assert await server.stop() == 0


async def test_a_restart_serves_similar_questions_at_once(upstream: ScriptedUpstream, tmp_path: Path, key: str) -> None:
    async with serving(tmp_path, upstream.url) as server:
        live = await server.proxy.fill(chat(), key=key)
        assert await server.stop() == 0
    async with serving(tmp_path, upstream.url) as server:
        near = await server.proxy.ask(chat(PARAPHRASE), key=key)
        assert (near.tier, near.content) == ("semantic", live.content)


async def test_a_second_instance_on_the_same_files_is_refused(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with serving(tmp_path, upstream.url) as server:
        with pytest.raises(ServerExited) as refused:
            await ServerProcess.start(tmp_path, upstream.url)
        assert refused.value.code == 2
        assert str(tmp_path) in refused.value.said
        assert "Traceback" not in refused.value.said
        await server.proxy.fill(chat(), key=key)
        await server.kill()
    async with serving(tmp_path, upstream.url) as server:
        assert await server.proxy.cached(chat(), key=key)


WRONG: dict[str, tuple[list[str], str]] = {
    "unknown pack": (["--policies", "no-such-pack"], "no-such-pack"),
    "unknown store": (["--store", "paper://x"], "paper"),
    "unknown encoder": (["--encoder", "/no/such/model"], "/no/such/model"),
    "unknown option": (["--prot", "1"], "--prot"),
    "missing file": (["--config", "/no/such/file.toml"], "/no/such/file.toml"),
    "not a port": (["--port", "http"], "port"),
    "address of another machine": (["--host", "192.0.2.1"], "192.0.2.1"),
}


@pytest.mark.parametrize(("flags", "named"), WRONG.values(), ids=WRONG)
async def test_a_wrong_setting_is_named_and_the_exit_code_is_2(
    upstream: ScriptedUpstream, tmp_path: Path, flags: list[str], named: str
) -> None:
    with pytest.raises(ServerExited) as refused:
        await ServerProcess.start(tmp_path, upstream.url, *flags)
    assert refused.value.code == 2
    assert named in refused.value.said
    assert "Traceback" not in refused.value.said


# Damaged files.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def furnished(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with entries whose partition is a graph, left behind by a clean stop."""
    module_upstream.reset()
    data_dir = tmp_path_factory.mktemp("furnished")
    async with serving(data_dir, module_upstream.url, environ={"CACHEPROXY_INDEX__FLAT_LIMIT": "4"}) as server:
        for topic in TOPICS:
            await server.proxy.fill(about(topic), key="sk-furnished")
        assert await server.stop() == 0
    return data_dir


def database(data_dir: Path) -> list[Path]:
    return [data_dir / "entries.sqlite3"]


def snapshot(data_dir: Path) -> list[Path]:
    return files(data_dir / "index")


def emptied(_: bytes) -> bytes:
    return b""


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def rubbish(data: bytes) -> bytes:
    return b"rubbish!" * (len(data) // 8 + 1)


def flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF if position % 97 == 50 else byte for position, byte in enumerate(data))


def flipped_at_the_end(data: bytes) -> bytes:
    return data[:-16] + bytes(byte ^ 0x55 for byte in data[-16:])


DAMAGES = [emptied, halved, rubbish, flipped, flipped_at_the_end]


async def assert_sound(server: ServerProcess, *, all_hits: bool) -> None:
    """Answers come from the cache as they were, or from the backend; never anything else, and new ones are kept."""
    for topic in TOPICS:
        told = await server.proxy.ask(about(topic), key="sk-furnished")
        assert told.status == 200
        assert told.content.endswith(f"to: How many people live in {topic}?")
        if all_hits:
            assert told.outcome == "hit"
    near = await server.proxy.ask(chat("How many people live in Rome today?"), key="sk-furnished")
    assert near.status == 200
    await server.proxy.fill(chat(QUESTION), key="sk-furnished")
    assert (await server.proxy.ask(chat(PARAPHRASE), key="sk-furnished")).tier == "semantic"
    assert (await server.proxy.call("GET", "/readyz")).status == 200
    assert await server.stop() == 0


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_snapshot_costs_nothing_but_a_rebuild(
    upstream: ScriptedUpstream, furnished: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    data_dir = shutil.copytree(furnished, tmp_path / "data")
    assert snapshot(data_dir)
    for file in snapshot(data_dir):
        file.write_bytes(damage(file.read_bytes()))
    async with serving(data_dir, upstream.url, environ={"CACHEPROXY_INDEX__FLAT_LIMIT": "4"}) as server:
        near = await server.proxy.ask(chat("How many people live in Rome today?"), key="sk-furnished")
        assert near.status == 200
        assert near.get("x-cacheproxy-similarity") is not None
        await assert_sound(server, all_hits=True)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_database_never_stops_the_proxy_or_serves_rubbish(
    upstream: ScriptedUpstream, furnished: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    data_dir = shutil.copytree(furnished, tmp_path / "data")
    for file in database(data_dir):
        file.write_bytes(damage(file.read_bytes()))
    async with serving(data_dir, upstream.url) as server:
        await assert_sound(server, all_hits=False)


async def test_a_missing_snapshot_is_rebuilt(upstream: ScriptedUpstream, furnished: Path, tmp_path: Path) -> None:
    data_dir = shutil.copytree(furnished, tmp_path / "data")
    shutil.rmtree(data_dir / "index")
    async with serving(data_dir, upstream.url) as server:
        await assert_sound(server, all_hits=True)


async def test_a_garbled_write_ahead_log_costs_at_most_its_own_entries(
    upstream: ScriptedUpstream, furnished: Path, tmp_path: Path
) -> None:
    data_dir = shutil.copytree(furnished, tmp_path / "data")
    (data_dir / "entries.sqlite3-wal").write_bytes(rubbish(b" " * 50_000))
    async with serving(data_dir, upstream.url) as server:
        await assert_sound(server, all_hits=True)


# What gets out.

PROMPT, SECRET = "canary-prompt-7c1e", "sk-canary-9d2f"


async def provoke(proxy: Proxy, upstream: ScriptedUpstream) -> list[bytes]:
    """Make everything go wrong that can, with canaries in prompt and key; return the proxy's own error bodies."""
    body = chat(f"{QUESTION} {PROMPT}")
    key = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}
    await proxy.fill(body, key=SECRET)
    await proxy.ask(chat(f"{PARAPHRASE} {PROMPT}"), key=SECRET)
    asked: list[tuple[str, str, dict[str, str], bytes]] = [
        ("POST", "/v1/chat/completions", key, encode(body)[:-1]),
        ("POST", "/v1/chat/completions", key, encode([body])),
        ("POST", "/v1/chat/completions", key, encode({**body, "cache": {"ttl": PROMPT}})),
        ("POST", "/v1/chat/completions", key | {"x-cacheproxy-tier": PROMPT}, encode(body)),
        ("POST", "/v1/chat/completions", key | {"content-encoding": "gzip"}, encode(body)),
        ("POST", "/v1/chat/completions", key | {"cache-control": "only-if-cached"}, encode(chat(PROMPT))),
        ("POST", "/nowhere", key, encode(body)),
        ("DELETE", "/healthz", key, encode(body)),
    ]
    bodies = [(await proxy.call(*one)).body for one in asked]
    for script in ([CUT], stream(*EVENTS[:2], CUT), answer(b"", status=302, headers=[("location", f"/{PROMPT}")])):
        upstream.play(script)
        failed = await proxy.ask(chat(f"{PROMPT}?", stream=True), key=SECRET)
        bodies.append(failed.body if failed.status != 200 else b"")
    upstream.play(answer(completion(PROMPT, finish="length")))
    await proxy.ask(chat(f"{PROMPT}!"), key=SECRET)
    async with await Connection.open(proxy.url) as connection:
        connection.send(request_bytes("POST", "/v1/chat/completions", [("x y", SECRET)], encode(body)))
        bodies.append(answered(await connection.read_response()).body)
    return bodies


async def test_prompts_and_keys_stay_out_of_logs_metrics_and_errors(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with serving(tmp_path, upstream.url, environ={"CACHEPROXY_LOG__LEVEL": "debug"}) as server:
        bodies = await provoke(server.proxy, upstream)
        async with await Connection.open(server.proxy.admin_url) as connection:
            connection.send(request_bytes("GET", "/metrics"))
            metrics = await connection.read_response("GET")
        assert metrics.status == 200
        assert await server.stop() == 0
        assert server.events
    for shown in (b"\n".join(bodies), metrics.body, server.said.encode()):
        assert PROMPT.encode() not in shown
        assert SECRET.encode() not in shown
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in files(tmp_path))


async def test_the_files_are_the_owners_alone(upstream: ScriptedUpstream, tmp_path: Path, key: str) -> None:
    data_dir = tmp_path / "fresh"
    async with serving(data_dir, upstream.url) as server:
        await server.proxy.fill(chat(), key=key)
        open_to_others = [path for path in (data_dir, *files(data_dir)) if path.stat().st_mode & 0o077]
        assert open_to_others == []
