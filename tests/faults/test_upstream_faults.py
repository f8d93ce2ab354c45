"""A backend that refuses, hangs, trickles or redirects: the caller is told in time, nothing is kept."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support.openai_wire import completion, encode, events
from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.proxy import UNRELATED, Proxy, chat, proxy_settings, started
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import CUT, RESET, Cut, Hold, ScriptedUpstream, Send, Step, Wait, answer, head, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORMS = pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
IDLE_S, FIRST_BYTE_S, TOTAL_S = 0.4, 0.5, 1.2
SOON_S = 3.0
EVENTS = events("one two three four five six")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A proxy whose patience with its backend is short."""
    patience = {
        "connect_timeout_s": 0.5,
        "first_byte_timeout_s": FIRST_BYTE_S,
        "idle_timeout_s": IDLE_S,
        "total_timeout_s": TOTAL_S,
    }
    settings = proxy_settings(
        module_upstream.url, tmp_path_factory.mktemp("data"), upstream=patience, store={"url": "memory://"}
    )
    async with started(settings) as live:
        yield live


def error(status: int) -> dict[str, Any]:
    return {"error": {"message": f"backend says {status}", "type": "t", "param": "p", "code": "c"}, "vendor": [1]}


async def assert_forgotten(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(None)
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)


@FORMS
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
async def test_a_client_error_passes_through_once_and_is_forgotten(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, status: int, form: dict[str, Any]
) -> None:
    upstream.always(answer(error(status), status=status, headers=[("x-request-id", "req-1"), ("x-vendor", "a b")]))
    live = await hasty.ask(chat(**form), key=key)
    assert (live.status, live.body) == (status, encode(error(status)))
    assert (live.get("x-request-id"), live.get("x-vendor")) == ("req-1", "a b")
    assert upstream.calls == 1
    await assert_forgotten(hasty, upstream, key)


@FORMS
async def test_a_rate_limit_passes_through_with_its_headers(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    limits = [("retry-after", "7"), ("retry-after-ms", "7000"), ("x-ratelimit-remaining-requests", "0")]
    upstream.always(answer(error(429), status=429, headers=limits))
    live = await hasty.ask(chat(**form), key=key)
    assert (live.status, live.body) == (429, encode(error(429)))
    assert [(name, live.get(name)) for name, _ in limits] == limits
    assert upstream.calls == 1
    await assert_forgotten(hasty, upstream, key)


@FORMS
@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
async def test_a_server_error_passes_through_after_at_most_one_more_try(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, status: int, form: dict[str, Any]
) -> None:
    upstream.always(answer(error(status), status=status, headers=[("retry-after", "1")]))
    live = await hasty.ask(chat(**form), key=key)
    assert (live.status, live.body, live.get("retry-after")) == (status, encode(error(status)), "1")
    assert upstream.calls <= 2
    await assert_forgotten(hasty, upstream, key)


async def test_an_error_page_that_is_not_json_passes_through(
    hasty: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    page = b"<html><h1>502 Bad Gateway</h1></html>"
    upstream.always(answer(page, status=502, content_type="text/html"))
    live = await hasty.ask(chat(), key=key)
    assert (live.status, live.body, live.get("content-type")) == (502, page, "text/html")


UNREACHABLE = {
    "nobody listens": lambda upstream: f"http://127.0.0.1:{free_port()}/v1",
    "no such name": lambda upstream: "http://no-such-host.invalid/v1",
    "no TLS there": lambda upstream: f"https://127.0.0.1:{upstream.port}/v1",
}


@pytest.mark.parametrize("where", UNREACHABLE.values(), ids=UNREACHABLE)
async def test_an_unreachable_backend_is_a_502_in_time(
    upstream: ScriptedUpstream, key: str, tmp_path: Path, where: Any
) -> None:
    settings = proxy_settings(where(upstream), tmp_path, upstream={"connect_timeout_s": 0.3})
    async with started(settings) as proxy:
        forms: list[dict[str, Any]] = [{}, {"stream": True}]
        for form in forms:
            began_s = time.monotonic()
            live = await proxy.ask(chat(**form), key=key)
            assert time.monotonic() - began_s < SOON_S
            live.assert_problem(502, "upstream_unreachable")
            assert live.outcome in ("miss", None)
        (await proxy.call("GET", "/v1/models")).assert_problem(502, "upstream_unreachable")
        (await proxy.call("GET", "/v1/files")).assert_problem(502, "upstream_unreachable")
        assert (await proxy.call("GET", "/healthz")).status == 200


SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgnm4kYogroq6oAVd5
8AmVMMXNMdj/1BHiaBLV4UD5EfShRANCAATInO8wP+9KM2yThpeNH+QBQaA2bziY
tRfH41PBha2vpjPdtZ5nTrnjPlXI9lMt0VMiJ2zHI7t5rnb5RHLY9yKE
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBjzCCATagAwIBAgIUCx39PNyCU77UZQgVjo2Vlpu1DMMwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMjE3MzYzNloYDzIxMjYxMDI5
MTczNjM2WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATInO8wP+9KM2yThpeNH+QBQaA2bziYtRfH41PBha2vpjPdtZ5nTrnj
PlXI9lMt0VMiJ2zHI7t5rnb5RHLY9yKEo2QwYjAdBgNVHQ4EFgQU14C0zkEvUc+y
Dw8c3j6wQJYhhtQwHwYDVR0jBBgwFoAU14C0zkEvUc+yDw8c3j6wQJYhhtQwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0cAMEQC
IDwbAPHs5MFL3Ra4zxewHo+7PLbQfSYVOdLkvjxhOReeAiAtnjkuFtTU6uXLmQ7U
ZdWR8fZVxW4+z2zLBNg4GZjkEQ==
-----END CERTIFICATE-----
"""
"""A certificate that nobody trusts, with its key: for 127.0.0.1, and good for nothing else."""


async def test_a_backend_with_a_certificate_nobody_trusts_is_unreachable(key: str, tmp_path: Path) -> None:
    pem = tmp_path / "self-signed.pem"
    pem.write_text(SELF_SIGNED)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server, started(proxy_settings(f"https://127.0.0.1:{port}/v1", tmp_path)) as proxy:
        (await proxy.ask(chat(), key=key)).assert_problem(502, "upstream_unreachable")
        (await proxy.call("GET", "/v1/files")).assert_problem(502, "upstream_unreachable")


async def test_hits_are_served_while_the_backend_is_down(key: str, tmp_path: Path) -> None:
    async with ScriptedUpstream() as backend, started(proxy_settings(backend.url, tmp_path)) as proxy:
        live = await proxy.fill(chat(), key=key)
        await backend.__aexit__(None, None, None)
        assert (await proxy.ask(chat(), key=key)).content == live.content
        (await proxy.ask(chat(UNRELATED), key=key)).assert_problem(502)


@FORMS
async def test_a_backend_that_hangs_is_a_504_and_is_let_go(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    upstream.always([Hold(asyncio.Event())])
    began_s = time.monotonic()
    live = await hasty.ask(chat(**form), key=key)
    assert FIRST_BYTE_S * 0.8 <= time.monotonic() - began_s < SOON_S
    live.assert_problem(504, "upstream_timeout")
    await eventually(lambda: upstream.requests[0].client_left_s is not None, "the connection is closed")
    await assert_forgotten(hasty, upstream, key)


async def test_followers_of_a_hanging_leader_all_hear_of_it(hasty: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always([Hold(asyncio.Event())])
    began_s = time.monotonic()
    answers = await asyncio.gather(*(hasty.ask(chat(), key=key) for _ in range(20)))
    assert {one.status for one in answers} == {504}
    assert time.monotonic() - began_s < 2 * SOON_S


def parts_then(*last: Step) -> list[Step]:
    return stream(*EVENTS[:3], *last)


STALLS: dict[str, list[Step]] = {
    "silence": parts_then(Hold(asyncio.Event())),
    "silence inside an event": stream(EVENTS[0], EVENTS[1][:20], Hold(asyncio.Event())),
}


@pytest.mark.parametrize("steps", STALLS.values(), ids=STALLS)
async def test_a_stream_that_falls_silent_is_broken_off(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, steps: list[Step]
) -> None:
    upstream.always(steps)
    began_s = time.monotonic()
    live = await hasty.ask(chat(stream=True), key=key)
    assert IDLE_S * 0.8 <= time.monotonic() - began_s < SOON_S
    assert not live.complete
    assert live.body.startswith(EVENTS[0])
    assert b"[DONE]" not in live.body
    await eventually(lambda: upstream.requests[0].client_left_s is not None, "the connection is closed")
    await assert_forgotten(hasty, upstream, key)


async def test_a_body_that_falls_silent_is_not_passed_on_as_whole(
    hasty: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    whole = encode(completion("one two three"))
    upstream.always([*answer(whole[:50], length=len(whole)), Hold(asyncio.Event())])
    live = await hasty.ask(chat(), key=key)
    if live.status == 200:
        assert not live.complete
    else:
        live.assert_problem(504, "upstream_timeout")
    await assert_forgotten(hasty, upstream, key)


async def test_a_trickle_ends_at_the_total_limit_and_hinders_nobody(
    hasty: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    slow: list[bytes | Step] = []
    for _ in range(100):
        slow += [EVENTS[1], Wait(IDLE_S / 4)]
    upstream.play(stream(EVENTS[0], *slow))
    began_s = time.monotonic()
    trickle = asyncio.create_task(hasty.ask(chat(stream=True), key=key))
    await upstream.received(1)
    for number in range(10):
        asked_s = time.monotonic()
        assert (await hasty.ask(chat(f"{UNRELATED} {number}"), key=key)).status == 200
        assert time.monotonic() - asked_s < 1.0
    live = await trickle
    assert TOTAL_S * 0.8 <= time.monotonic() - began_s < TOTAL_S + SOON_S
    assert not live.complete
    await assert_forgotten(hasty, upstream, key)


async def test_a_slow_but_steady_stream_is_not_broken_off(hasty: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    steps: list[bytes | Step] = []
    for one in EVENTS[:6]:
        steps += [one, Wait(IDLE_S / 3)]
    upstream.always(stream(*steps, *EVENTS[6:]))
    live = await hasty.ask(chat(stream=True), key=key)
    assert (live.complete, live.body) == (True, b"".join(EVENTS))


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/files"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_refused_and_its_target_never_visited(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, status: int, target: str
) -> None:
    async with ScriptedUpstream() as elsewhere:
        upstream.always(answer(b"", status=status, headers=[("location", f"{elsewhere.url}/steal")]))
        live = await hasty.ask(chat(), key=key, target=target)
        live.assert_problem(502, "upstream_broken")
        assert elsewhere.url.encode() not in live.body
        assert live.get("location") is None
        assert (upstream.calls, elsewhere.calls) == (1, 0)
    if target == "/v1/chat/completions":
        await assert_forgotten(hasty, upstream, key)


NONSENSE: dict[str, list[Step]] = {
    "closed at once": [CUT],
    "reset at once": [RESET],
    "half a status line": [Send(b"HTTP/1.1 20"), CUT],
    "half a head": [Send(b"HTTP/1.1 200 OK\r\ncontent-ty"), CUT],
    "not HTTP": [Send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), CUT],
    "HTTP/9.9": [Send(b"HTTP/9.9 200 OK\r\ncontent-length: 2\r\n\r\n{}"), CUT],
    "status 99": [Send(b"HTTP/1.1 99 Low\r\ncontent-length: 2\r\n\r\n{}"), CUT],
    "status word": [Send(b"HTTP/1.1 OK 200\r\ncontent-length: 2\r\n\r\n{}"), CUT],
    "huge header": [Send(head(200, [("x-huge", "h" * 1_000_000), ("content-length", "2")]) + b"{}"), CUT],
    "negative length": [Send(head(200, [("content-length", "-1")]) + b"{}"), CUT],
    "length and chunks": [
        Send(head(200, [("content-length", "2"), ("transfer-encoding", "chunked")]) + b"2\r\n{}\r\n0\r\n\r\n"),
        CUT,
    ],
}


@FORMS
@pytest.mark.parametrize("steps", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_instead_of_an_answer_is_a_502(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, steps: list[Step], form: dict[str, Any]
) -> None:
    upstream.always(steps)
    live = await hasty.ask(chat(**form), key=key)
    live.assert_problem(502)
    assert upstream.calls <= 2
    await assert_forgotten(hasty, upstream, key)


@pytest.mark.parametrize("cut", [CUT, RESET], ids=["fin", "rst"])
async def test_a_kept_connection_that_died_meanwhile_is_not_the_callers_problem(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, cut: Cut
) -> None:
    upstream.play([*answer(completion("first")), Wait(0.02), cut])
    assert (await hasty.ask(chat(), key=key)).status == 200
    await eventually(lambda: upstream.requests[0].answered, "the backend closes the idle connection")
    assert (await hasty.ask(chat(UNRELATED), key=key)).status == 200


async def test_the_backend_is_asked_for_no_compression_and_given_no_ambient_proxy(
    hasty: Proxy, upstream: ScriptedUpstream, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    live = await hasty.ask(chat(), key=key, headers={"accept-encoding": "gzip, br"})
    assert live.status == 200
    assert upstream.requests[0].header("accept-encoding") in (None, "identity")


async def test_the_key_goes_to_the_configured_backend_as_it_came(
    hasty: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    await hasty.ask(chat(), key=key)
    assert [value for name, value in upstream.requests[0].headers if name.lower() == "authorization"] == [
        f"Bearer {key}"
    ]


async def test_a_target_in_absolute_form_never_leaves_for_another_host(
    hasty: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    async with ScriptedUpstream() as elsewhere, await Connection.open(hasty.url) as connection:
        target = f"{elsewhere.url}/chat/completions"
        headers = [("authorization", f"Bearer {key}"), ("content-type", "application/json")]
        connection.send(request_bytes("POST", target, headers, encode(chat())))
        response = await connection.read_response()
        assert response.status < 500
        assert elsewhere.calls == 0


async def test_many_failures_leave_nothing_behind(hasty: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always([CUT])
    await asyncio.gather(*(hasty.ask(chat(f"{UNRELATED} {number}"), key=key) for number in range(200)))
    upstream.always(None)
    assert (await hasty.ask(chat(), key=key)).status == 200
    await eventually(lambda: len(upstream.connections) <= 8, "connections to the backend are closed")
