"""What is never cached leaves nothing: not in a file, a log, a metric, a header or an answer of the admin port."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.support import openai_wire
from tests.support.process import serving
from tests.support.proxy import CHAT, COMPLETIONS, chat, complete
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.process import ServerProcess
    from tests.support.rawhttp import Response
    from tests.support.upstream import ScriptedUpstream

ADMIN_VIEWS = ("entries", "near-misses", "stats", "recommendations", "audit", "policies", "config", "upstreams")


def pack(folder: Path) -> Path:
    """Write a pack on top of the default one, where a rule of the operator's keeps one category out of the cache."""
    folder.mkdir()
    rule = '[[categories.private.rules]]\ntext = "canary-private"\n[[categories.private.rules]]\nnamespaces = ["hr"]\n'
    (folder / "policy.toml").write_text(
        'extends = "balanced"\nname = "canary"\ndescription = "x"\nschema = 1\n'
        f"[categories.private]\nallow_caching = false\n{rule}",
        encoding="utf-8",
    )
    return folder


def gated_pack(folder: Path) -> Path:
    """Write a pack of one category that keeps no e-mail address and no IBAN."""
    folder.mkdir()
    (folder / "policy.toml").write_text(
        'schema = 1\nname = "gated"\ndescription = "x"\ndefault_category = "default"\n'
        '[categories.default]\npii = ["EMAIL_ADDRESS", "IBAN_CODE"]\n',
        encoding="utf-8",
    )
    return folder


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


async def ask(url: str, target: str, body: dict[str, Any], key: str = "sk-one", **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = {"content-type": "application/json", "authorization": f"Bearer {key}", **named}.items()
    async with await Connection.open(url) as connection:
        connection.send(request_bytes("POST", target, pairs, openai_wire.encode(body)))
        return await connection.read_response("POST")


async def told_by_admin(server: ServerProcess) -> str:
    """Return everything that the admin port shows by itself."""
    shown = []
    for target in ("/metrics", *(f"/admin/v1/{view}" for view in ADMIN_VIEWS)):
        async with await Connection.open(server.proxy.admin_url) as connection:
            connection.send(request_bytes("GET", target))
            response = await connection.read_response("GET")
        assert response.status == 200, target
        shown.append(response.body.decode())
    return "\n".join(shown)


def holding(folder: Path, canary: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_of_a_category_never_cached_remains(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    data, canary = tmp_path / "data", f"canary-private-{uuid4().hex}"
    said = f"answer-{uuid4().hex}"
    upstream.always(lambda _: answer(openai_wire.completion(said)))
    environ = {"CACHEPROXY_LOG__LEVEL": "debug"}
    async with serving(data, upstream.url, "--policies", str(pack(tmp_path / "pack")), environ=environ) as server:
        url = server.proxy.url
        for body in (
            chat(f"What about {canary}?"),
            chat(f"What about {canary}?", stream=True),
            chat(messages=turns(f"I am {canary}", "I see.", "And then?")),
            chat(f"Tell {canary}", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]),
            chat(f"Tell {canary}", response_format={"type": "json_object"}),
        ):
            for headers in ({}, {"x_cacheproxy_category": "default"}, {"x_cacheproxy_tags": "t"}):
                response = await ask(url, CHAT, body, **headers)
                assert response.get("x-cacheproxy-outcome") == "bypass"
                assert canary not in "\n".join(f"{name}: {value}" for name, value in response.headers)
        assert (await ask(url, COMPLETIONS, complete(f"Say {canary}"))).get("x-cacheproxy-outcome") == "bypass"
        responses = {"model": openai_wire.MODEL, "input": f"Say {canary}"}
        assert (await ask(url, "/v1/responses", responses)).get("x-cacheproxy-outcome") == "bypass"
        hr = await ask(url, CHAT, chat("How much does she earn? hr-canary"), x_cacheproxy_namespace="hr")
        assert hr.get("x-cacheproxy-outcome") == "bypass"
        shown = await told_by_admin(server)
        assert await server.stop() == 0
    assert [word for word in (canary, said, "hr-canary") if word in shown or word in server.said] == []
    for word in (canary, said, "hr-canary"):
        assert holding(data, word) == []


@pytest.mark.asyncio(loop_scope="module")
async def test_a_question_near_the_examples_of_what_is_never_cached_leaves_nothing(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    private, plain = "My blood test came back positive for diabetes, what should I do?", "What is the capital of Peru?"
    async with serving(tmp_path, upstream.url) as server:
        for _ in range(2):
            assert (await ask(server.proxy.url, CHAT, chat(private))).get("x-cacheproxy-outcome") == "bypass"
        outcomes = []
        for _ in range(2):
            outcomes.append((await ask(server.proxy.url, CHAT, chat(plain))).get("x-cacheproxy-outcome"))
            await asyncio.sleep(0.3)
        assert outcomes == ["miss", "hit"]
        assert await server.stop() == 0
    assert holding(tmp_path, "blood test came back") == []
    assert holding(tmp_path, "capital of Peru") != [], "the same search finds what is kept"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("What is the shop's address?", "Write to anna.canary@example.com"),
        ("Is CH93 0076 2011 6238 5295 7 a valid IBAN?", "Yes, it is."),
    ],
    ids=["in the answer", "in the question"],
)
async def test_an_answer_with_personal_data_is_not_kept(
    upstream: ScriptedUpstream, tmp_path: Path, question: str, said: str
) -> None:
    data = tmp_path / "data"
    upstream.always(lambda _: answer(openai_wire.completion(said)))
    async with serving(data, upstream.url, "--policies", str(gated_pack(tmp_path / "pack"))) as server:
        told = ""
        async with asyncio.timeout(90):
            while 'detail="pii"' not in told:  # at first the recognisers may still be being loaded
                response = await ask(server.proxy.url, CHAT, chat(question))
                told = response.get("cache-status") or ""
                assert (response.get("x-cacheproxy-outcome"), "stored" in told) == ("miss", False)
        upstream.always(lambda _: answer(openai_wire.completion("Nothing of note.")))
        for outcome in ("miss", "hit"):
            response = await ask(server.proxy.url, CHAT, chat("What is of note?"))
            assert response.get("x-cacheproxy-outcome") == outcome
        assert await server.stop() == 0
    assert holding(data, "anna.canary") == []
    assert holding(data, "CH93 0076") == []
