"""Keys and prompts stay where they belong, over a whole run of a real process at its most talkative."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from cacheproxy.configure import load
from tests.support import openai_wire
from tests.support.polling import eventually_true
from tests.support.process import serving
from tests.support.proxy import CHAT, chat
from tests.support.rawhttp import Connection, Response, request_bytes
from tests.support.upstream import CUT, answer, stream
from tests.support.virtual_keys import KeyFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.process import ServerProcess
    from tests.support.upstream import ScriptedUpstream

DEBUG = {"CACHEPROXY_LOG__LEVEL": "debug"}
KEEPS_PROMPTS = ("entries.sqlite3", "feedback.sqlite3")
"""Files that hold callers' texts, as documented: the entries, and what callers said of them."""


class Canaries:
    """Strings that occur nowhere else."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.prompts: list[str] = []

    def key(self, made: str = "") -> str:
        self.keys.append(made or f"sk-canary{uuid4().hex}")
        return self.keys[-1]

    def prompt(self) -> str:
        self.prompts.append(f"canary{uuid4().hex}")
        return f"What is {self.prompts[-1]}?"


async def sent(url: str, method: str, target: str, key: str, body: bytes | None, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    typed = {} if body is None else {"content-type": "application/json"}
    async with await Connection.open(url) as connection:
        pairs = {**typed, "authorization": f"Bearer {key}", **named}.items()
        connection.send(request_bytes(method, target, pairs, body))
        return await connection.read_response(method)


async def whole_run(
    server: ServerProcess, upstream: ScriptedUpstream, key: str, canaries: Canaries
) -> tuple[list[Response], list[Response]]:
    """Send every kind of request; return the answers, and those among them in which the proxy itself speaks."""
    url, every, ours = server.proxy.url, list[Response](), list[Response]()

    async def ask(body: bytes, *, own: bool = False, target: str = CHAT, as_key: str = key, **headers: str) -> None:
        response = await sent(url, "POST", target, as_key, body, **headers)
        every.append(response)
        if own:
            assert response.status >= 400, response.body[:300]
            ours.append(response)

    def asked(**fields: object) -> bytes:
        return openai_wire.encode(chat(canaries.prompt(), **fields))

    for fields in ({}, {"stream": True}):
        question = asked(**fields)
        await ask(question)  # a miss
        await eventually_true(partial(hit, url, key, question), "the answer is kept")
        await ask(question)
    await ask(asked(n=2))
    forms: tuple[dict[str, object], ...] = ({}, {"stream": True}, {"n": 2})
    for steps in (
        answer({"error": {"message": "broken", "type": "server_error", "param": None, "code": None}}, status=500),
        answer(b"not json"),
        stream(openai_wire.events("x")[0], CUT),
        [CUT],
    ):
        for form in forms:
            upstream.play(steps)
            await ask(asked(**form))
    # Refusals: what is wrong is near what is secret.
    await ask(asked()[:-3], own=True)
    await ask(b'"' + canaries.prompt().encode() + b'"', own=True)
    await ask(asked(cache=canaries.prompt()), own=True)
    await ask(asked(cache={canaries.prompt(): canaries.prompt()}))
    await ask(asked(), own=True, content_encoding="gzip")
    await ask(asked(), own=True, x_cacheproxy_threshold="very")
    await ask(asked(), own=True, cache_control="only-if-cached", x_cacheproxy_tier="exact")
    await ask(asked(), own=True, x_cacheproxy_category="none-such")
    await ask(b"\xff" + asked(), own=True)
    await ask(asked(), api_key=canaries.key(), x_api_key=canaries.key())
    # Other routes
    multipart = f"--b\r\n\r\n{canaries.prompt()}\r\n--b--".encode()
    await ask(multipart, target="/v1/files", content_type="multipart/form-data; boundary=b")
    await ask(openai_wire.encode({"input": canaries.prompt()}), target="/v1/moderations")
    await ask(asked(), target="/v1/x/../y", own=True)
    await ask(asked(), target="/elsewhere", own=True)
    every.append(await sent(url, "GET", "/v1/models", key, None))
    entry = next(value for r in every if (value := r.get("x-cacheproxy-entry")))
    words = {"id": entry, "verdict": "bad", "comment": canaries.prompt()}
    await ask(openai_wire.encode(words), target="/v1/cache/feedback")
    await ask(openai_wire.encode({**words, "verdict": canaries.prompt()}), target="/v1/cache/feedback", own=True)
    explained = openai_wire.encode({"text": canaries.prompt(), "key": key})
    await sent(server.proxy.admin_url, "POST", "/admin/v1/explain", canaries.key(), explained)
    # A caller who leaves in the middle
    connection = await Connection.open(url)
    connection.send(request_bytes("POST", CHAT, [("authorization", f"Bearer {key}")], asked())[:-20])
    connection.leave(reset=True)
    ours.append(await sent(server.proxy.admin_url, "GET", "/metrics", key, None))
    return every, ours


async def hit(url: str, key: str, question: bytes) -> bool:
    return (await sent(url, "POST", CHAT, key, question, cache_control="only-if-cached")).status == 200


def head_of(response: Response) -> str:
    return "\n".join(f"{name}: {value}" for name, value in response.headers)


def files_with(data_dir: Path, canaries: list[str], *, but: Callable[[Path], bool] = lambda _: False) -> list[str]:
    """Return the files under a directory that hold any canary."""
    found = []
    for path in sorted(path for path in data_dir.rglob("*") if path.is_file() and not but(path)):
        data = path.read_bytes()
        found += [str(path) for canary in canaries if canary.encode() in data]
    return found


def assert_nothing_leaked(
    canaries: Canaries, said: str, every: list[Response], ours: list[Response], data_dir: Path
) -> None:
    assert said
    secrets = [*canaries.keys, *canaries.prompts]
    assert [canary for canary in secrets if canary in said] == []
    for response in every:
        assert [key for key in canaries.keys if key in response.body.decode("utf-8", "replace")] == []
        assert [canary for canary in secrets if canary in head_of(response)] == []
    for response in ours:
        text = response.body.decode("utf-8", "replace")
        assert [canary for canary in secrets if canary in text] == [], text[:500]
    assert files_with(data_dir, canaries.keys) == []
    assert files_with(data_dir, canaries.prompts, but=lambda path: path.name.startswith(KEEPS_PROMPTS)) == []


def upstream_keys(upstream: ScriptedUpstream) -> set[str | None]:
    return {request.header("authorization") for request in upstream.requests}


@pytest.mark.asyncio(loop_scope="module")
async def test_in_pass_mode_no_key_and_no_prompt_leaves_its_place(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    canaries = Canaries()
    key = canaries.key()
    async with serving(tmp_path, upstream.url, environ=DEBUG) as server:
        every, ours = await whole_run(server, upstream, key, canaries)
        assert await server.stop() == 0
    assert upstream_keys(upstream) == {f"Bearer {key}"}
    assert_nothing_leaked(canaries, server.said, every, ours, tmp_path)


@pytest.mark.asyncio(loop_scope="module")
async def test_in_keys_mode_no_key_and_no_prompt_leaves_its_place(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    canaries, kept = Canaries(), KeyFile(tmp_path)
    good, slow, poor = canaries.key(kept.add()), canaries.key(kept.add(requests_per_minute=1)), kept.add(revoked=True)
    narrow = canaries.key(kept.add(models=("none-*",)))
    backend, own = canaries.key(), canaries.key()
    metered = canaries.key(kept.add(tokens_per_day=1, upstream_key_env="OWN_KEY"))
    modes = {"CACHEPROXY_ACCESS__MODE": "keys", "CACHEPROXY_UPSTREAM__API_KEY": backend, "OWN_KEY": own}
    async with serving(tmp_path, upstream.url, environ={**DEBUG, **modes}) as server:
        every, ours = await whole_run(server, upstream, good, canaries)
        question = openai_wire.encode(chat(canaries.prompt()))
        statuses = []
        for key in (slow, slow, canaries.key(poor), canaries.key(), narrow, metered, metered):
            for target in (CHAT, "/v1/moderations"):
                response = await sent(server.proxy.url, "POST", target, key, question, cache_control="no-store")
                statuses.append(response.status)
                every.append(response)
                if response.status >= 400:
                    ours.append(response)
        assert {401, 403, 429} <= set(statuses)
        kept.path.write_text('{"keys": ["' + canaries.key() + '"]}')
        await asyncio.sleep(1.0)
        assert await server.stop() == 0
        assert "keys_refused" in server.said
    kept.path.unlink()
    assert upstream_keys(upstream) == {f"Bearer {backend}", f"Bearer {own}"}
    assert all(key not in repr(upstream.requests) for key in canaries.keys if key not in (backend, own))
    assert_nothing_leaked(canaries, server.said, every, ours, tmp_path)


@pytest.mark.parametrize("form", [repr, str, "{}".format, "{!r}".format, lambda found: f"{found!s}"])
def test_settings_show_no_key(form: Callable[[object], str]) -> None:
    flags: dict[str, dict[str, object]] = {
        "upstream": {"api_key": "sk-canary-1"},
        "admin": {"token": "sk-canary-2"},
        "upstreams": {"eu": {"url": "https://x/v1", "models": ["m"], "api_key": "sk-canary-3"}},
    }
    assert "canary" not in form(load(None, environ={}, flags=flags))
