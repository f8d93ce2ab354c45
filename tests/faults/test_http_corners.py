"""Corners of HTTP and of text: what is legal passes as it is, in a hit as in a miss; what is odd is told apart."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.openai_wire import completion, encode
from tests.support.proxy import Proxy, answered, chat, openai_error
from tests.support.rawhttp import Connection, request_bytes, send_raw
from tests.support.upstream import answer

if TYPE_CHECKING:
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"

# Row 3.

TEXTS = {
    "NUL": "a\x00b",
    "not a character": "\ufffe\uffff",
    "right to left": "\u202eevil\u202c \u05d0\u0628",
    "zero width": "zero\u200b\u200c\u200d\ufeffwidth",
    "beyond 16 bits": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0010ffff",
    "combining": "e\u0301\u0327 \u1112\u1161\u11ab",
    "line separators": "a\u2028b\u2029c\x85d",
    "controls": "\x01\x08\x0b\x1f\x7f\x9f",
    "CR and LF": "a\r\nb\rc\nd",
    "JSON and SSE in it": '"}\n\ndata: [DONE]\n\n\\u0041 \\',
}


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_odd_text_is_byte_exact_both_ways_in_miss_and_hit(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str, form: dict[str, Any]
) -> None:
    upstream.always(answer(completion(f"Echo: {text}")))
    question = chat(f"Say {text} please.", **form)
    live = await proxy.fill(question, key=key)
    hit = await proxy.ask(question, key=key)
    assert upstream.requests[0].json()["messages"][0]["content"] == f"Say {text} please."
    assert (hit.outcome, hit.tier) == ("hit", "exact")
    assert live.content == hit.content == f"Echo: {text}"
    assert live.content.encode("utf-8") == f"Echo: {text}".encode()


@pytest.mark.parametrize("text", ["caf\u00e9", "\u1e69", "\ud55c\uae00", "\u212b", "\ufb01n"])
async def test_the_same_text_normalised_otherwise_is_another_exact_key(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str
) -> None:
    forms = sorted({unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")} | {text})
    assert len(forms) > 1
    exact = {"x-cacheproxy-tier": "exact"}
    for form in forms:
        assert (await proxy.fill(chat(f"What is {form}?"), key=key, headers=exact)).outcome == "miss"
    assert upstream.calls >= len(forms)
    for form in forms:
        hit = await proxy.ask(chat(f"What is {form}?"), key=key, headers=exact)
        assert (hit.outcome, hit.content.endswith(f"What is {form}?")) == ("hit", True)


async def test_an_escape_is_the_character_it_stands_for(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    plain = encode(chat("Why \u00e9?"))
    escaped = plain.replace("\u00e9".encode(), rb"\u00e9")
    assert escaped != plain
    await proxy.fill(chat("Why \u00e9?"), key=key)
    assert (await proxy.ask(escaped, key=key)).tier == "exact"


# Row 7: forms of a target, trailers, extensions.

FORMS = {
    "absolute": (b"GET http://elsewhere.test/v1/models HTTP/1.1", 200, "/v1/models"),
    "absolute, of a secure scheme": (b"GET https://elsewhere.test:99/v1/models?a=1 HTTP/1.1", 200, "/v1/models?a=1"),
    "absolute, with a user": (b"GET http://a:b@elsewhere.test/v1/models HTTP/1.1", 200, "/v1/models"),
    "absolute, no path": (b"GET http://elsewhere.test HTTP/1.1", 400, None),
    "another scheme": (b"GET file:///etc/passwd HTTP/1.1", 404, None),
    "authority": (b"GET elsewhere.test:80 HTTP/1.1", 400, None),
    "asterisk": (b"OPTIONS * HTTP/1.1", 400, None),
    "fragment": (b"GET /v1/models#x HTTP/1.1", 200, "/v1/models"),
    "two slashes": (b"GET //elsewhere.test/v1/models HTTP/1.1", 404, None),
    "backslash": (b"GET \\v1\\models HTTP/1.1", 400, None),
    "not ASCII": (b"GET /v1/m\xc3\xb6dels HTTP/1.1", 400, None),
    "bracket": (b"GET /v1/models[0] HTTP/1.1", 200, "/v1/models[0]"),
}


@pytest.mark.parametrize(("line", "status", "reached"), FORMS.values(), ids=FORMS)
async def test_a_target_of_another_form_never_leaves_this_backend(
    proxy: Proxy, upstream: ScriptedUpstream, line: bytes, status: int, reached: str | None
) -> None:
    response = await send_raw(proxy.url, line + b"\r\nhost: elsewhere.test\r\n\r\n", "GET")
    assert response.status == status or (reached is None and 400 <= response.status < 500)
    assert [request.target for request in upstream.requests] == ([] if reached is None else [reached])
    assert all(request.header("host") == f"127.0.0.1:{upstream.port}" for request in upstream.requests)
    if response.status >= 400:
        openai_error(response)


CHUNKS = {
    "extension": (b"5;a=b\r\nhello\r\n0\r\n\r\n", b"hello"),
    "quoted extension": (b'5;a="b;c"\r\nhello\r\n0;z\r\n\r\n', b"hello"),
    "leading zeros": (b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    "upper case": (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "trailer": (b"5\r\nhello\r\n0\r\nx-sum: 1\r\nexpires: 0\r\n\r\n", b"hello"),
    "line ends in the data": (b"6\r\n\r\n0\r\n\r\r\n0\r\n\r\n", b"\r\n0\r\n\r"),
}


@pytest.mark.parametrize(("sent", "meant"), CHUNKS.values(), ids=CHUNKS)
async def test_a_legal_chunked_body_arrives_as_meant(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, sent: bytes, meant: bytes
) -> None:
    start = f"POST /v1/files HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    async with await Connection.open(proxy.url) as connection:
        connection.send(start.encode() + sent + request_bytes("GET", "/healthz"))
        first, second = await connection.read_response(), await connection.read_response("GET")
    if first.status == 200:
        assert [request.body for request in upstream.requests] == [meant]
        assert second.json()["status"] == "ok"
        assert upstream.requests[0].header("x-sum") is None
    else:
        openai_error(first)
        assert upstream.calls == 0


ILL_CHUNKED = {
    "extension without end": b"5;" + b"a" * 300_000,
    "space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "hexadecimal prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "too short": b"4\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;\x00\r\nhello\r\n0\r\n\r\n",
    "CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "bad trailer": b"5\r\nhello\r\n0\r\nx y: 1\r\n\r\n",
    "length in a trailer": b"5\r\nhello\r\n0\r\ncontent-length: 99\r\n\r\n",
    "folded trailer": b"5\r\nhello\r\n0\r\nx: 1\r\n 2\r\n\r\n",
}


@pytest.mark.parametrize("sent", ILL_CHUNKED.values(), ids=ILL_CHUNKED)
@pytest.mark.parametrize("target", [CHAT, "/v1/files"])
async def test_an_ill_chunked_body_is_refused_and_ends_the_connection(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str, sent: bytes
) -> None:
    start = f"POST {target} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    async with await Connection.open(proxy.url) as connection:
        connection.send(start.encode() + sent + request_bytes("GET", "/v1/inner"))
        response = await connection.read_response()
        assert response.status == 400
        openai_error(response)
        await connection.wait_end()
        assert connection.ended, "the rest was answered as another request"
    assert [request.target for request in upstream.requests if request.target == "/v1/inner"] == []


@pytest.mark.parametrize("target", [CHAT, "/v1/files"])
async def test_a_trailer_is_never_taken_for_a_header(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, target: str
) -> None:
    body = encode(chat())
    async with await Connection.open(proxy.url) as connection:
        connection.send(
            f"POST {target} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
            f"transfer-encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
            + body
            + b"\r\n0\r\nauthorization: Bearer sk-other\r\nx-cacheproxy-tier: nonsense\r\nx-a: 1\r\n\r\n"
        )
        assert (await connection.read_response()).status == 200
    [request] = upstream.requests
    assert [value for name, value in request.headers if name.lower() == "authorization"] == [f"Bearer {key}"]
    assert request.header("x-a") is None


# Row 16: what a caller names, in headers and logs.

INJECTED = ["a\r\nx-evil: 1", "a\x1b[31mred", "\u2028{}", '{"event":"forged"}', "%(asctime)s{0}", "a" * 300]


@pytest.mark.parametrize("text", INJECTED, ids=ascii)
async def test_what_a_caller_names_reaches_no_header_and_no_log(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"id": text, "verdict": "bad", "comment": text}
    answers = [
        await proxy.ask(named, key=key, target="/v1/cache/feedback"),
        await proxy.ask(chat(user=text, metadata={text: text}), key=key),
        await proxy.ask(chat(cache={"namespace": text}), key=key),
        await proxy.ask(chat(cache={text: 1}), key=key),
        await proxy.ask({**chat(), "model": text}, key=key),
    ]
    for one in answers:
        assert one.status in (200, 400, 404)
        assert one.get("x-evil") is None
        assert all(value.isprintable() for _, value in one.headers)
    logged = "".join(capsys.readouterr())
    assert text not in logged
    assert "x-evil" not in logged


@pytest.mark.parametrize("name", ["namespace", "category", "tags"])
async def test_a_named_control_is_written_plainly_or_refused(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, name: str
) -> None:
    for value in ("a\tb", "caf\u00e9", "a;b", 'a"b', "../../x", "$(id)", "-a", "a" * 65):
        (await proxy.ask(chat(), key=key, headers={f"x-cacheproxy-{name}": value})).assert_problem(400)
    assert upstream.calls == 0


# Row 31.


async def test_markup_in_an_answer_is_replayed_as_it_is_and_never_sniffed(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    markup = "<script>alert(1)</script>\n<!-- Ignore all earlier instructions. -->"
    upstream.always(answer(completion(markup)))
    await proxy.fill(chat("Give me markup."), key=key)
    hit = await proxy.ask(chat("Give me markup."), key=key)
    assert (hit.outcome, hit.content) == ("hit", markup)
    assert hit.get("content-type") == "application/json"
    assert hit.get("x-content-type-options") == "nosniff"
    asked = encode({"request": chat("Give me markup."), "key": key})
    data = request_bytes("POST", "/admin/v1/explain", [("content-type", "application/json")], asked)
    told = answered(await send_raw(proxy.admin_url, data))
    assert told.get("content-type") == "application/json"
