"""The admin port against those who should not reach it: every role at every route, browsers, names, forged targets."""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from cacheproxy.errors import ConfigError
from cacheproxy.http.admin.guard import WRONG_TOKENS_A_MINUTE
from cacheproxy.http.admin.roles import ROLES, Role
from tests.support.admin import ask_admin
from tests.support.clock import FakeClock
from tests.support.proxy import CHAT, Proxy, answered, chat, proxy_settings, started
from tests.support.rawhttp import HOST, request_bytes, send_raw
from tests.support.upstream import answer
from tests.support.virtual_keys import KeyFile, keyed_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.proxy import Answered
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPERATOR, READER = "operator-token-0123456789", "reader-token-0123456789"
TOKENS = {Role.ANYONE: "", Role.READER: READER, Role.OPERATOR: OPERATOR}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
REFUSED = {401, 403}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A proxy with both tokens."""
    tokens = {"token": OPERATOR, "read_token": READER}
    async with started(proxy_settings(module_upstream.url, tmp_path_factory.mktemp("data"), admin=tokens)) as proxy:
        yield proxy


async def asked(proxy: Proxy, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Answered:
    data = request_bytes(method, path, headers.items(), body)
    return answered(await send_raw(proxy.admin_url, data, method))


def target(route: str) -> str:
    return route.replace("{}", "no-such-thing")


async def registered(proxy: Proxy) -> dict[str, set[str]]:
    document = (await ask_admin(proxy, "GET", "/openapi.json", token=READER)).json()
    return {
        re.sub(r"\{[^}]*\}", "{}", path): {method.upper() for method in methods}
        for path, methods in document["paths"].items()
    }


# Routes and roles


async def test_every_route_that_answers_is_in_the_table_with_exactly_its_methods(guarded: Proxy) -> None:
    found = await registered(guarded)
    assert found == {route: set(ROLES.get(route, ())) for route in found}


async def test_every_route_in_the_table_answers(guarded: Proxy) -> None:
    assert set(ROLES) - set(await registered(guarded)) == set()


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("route", ROLES)
async def test_each_role_reaches_what_the_table_says_and_nothing_else(guarded: Proxy, route: str, role: Role) -> None:
    headers = {"authorization": f"Bearer {TOKENS[role]}"} if TOKENS[role] else {}
    for method in METHODS:
        least = ROLES[route].get(method)
        body = {"content-type": "application/json"} if method in ("POST", "PUT", "PATCH") else {}
        given = await asked(guarded, method, target(route), headers | body, b"[]" if body else None)
        if least is None:
            wanted = {401} if role is Role.ANYONE and min(ROLES[route].values()) > Role.ANYONE else {405}
            assert given.status in wanted, (method, given.body)
        elif role >= least:
            assert given.status not in REFUSED, (method, given.body)
        else:
            assert given.status == (401 if role is Role.ANYONE else 403), (method, given.body)


async def test_refused_writes_changed_nothing(guarded: Proxy) -> None:
    before = (await ask_admin(guarded, "GET", "/policies", token=READER)).body
    for token in ("", READER, "wrong"):
        answer = await ask_admin(guarded, "PATCH", "/policies/categories/default", {"ttl_s": 1}, token=token)
        assert answer.status in REFUSED
    assert (await ask_admin(guarded, "GET", "/policies", token=READER)).body == before


@pytest.mark.parametrize(
    "path",
    ["/admin/v1/nothing", "/admin", "/", "/schema", "/admin/v1/policies/../audit", "/healthz/../metrics", "//metrics"],
)
async def test_without_a_token_nobody_learns_what_is_there(guarded: Proxy, path: str) -> None:
    (await asked(guarded, "GET", path, {})).assert_problem(401, "invalid_admin_token")


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {OPERATOR}",
        OPERATOR,
        f"Bearer {OPERATOR}x",
        f"Bearer {OPERATOR[:-1]}",
        f"Bearer {OPERATOR.upper()}",
        f"Bearer {OPERATOR} {OPERATOR}",
        "Bearer \xff\xfe",
    ],
)
async def test_only_the_whole_token_opens(upstream: ScriptedUpstream, guarded: Proxy, sent: str) -> None:
    data = (
        b"GET /metrics HTTP/1.1\r\nhost: "
        + HOST.encode()
        + b"\r\nauthorization: "
        + sent.encode("latin-1")
        + b"\r\n\r\n"
    )
    assert answered(await send_raw(guarded.admin_url, data, "GET")).status in (401, 429)


async def test_two_tokens_in_one_request_open_nothing(guarded: Proxy) -> None:
    headers = [("authorization", f"Bearer {READER}"), ("authorization", f"Bearer {OPERATOR}")]
    answer = await send_raw(guarded.admin_url, request_bytes("GET", "/metrics", headers), "GET")
    assert answer.status == 401


async def test_the_scheme_is_not_case_sensitive(guarded: Proxy) -> None:
    assert (await asked(guarded, "GET", "/metrics", {"authorization": f"bEARER {READER}"})).status == 200


@pytest.mark.parametrize("header", ["x-http-method-override", "x-http-method", "x-method-override"])
async def test_a_method_cannot_be_smuggled_in_a_header(guarded: Proxy, header: str) -> None:
    headers = {"authorization": f"Bearer {READER}", "content-type": "application/json", header: "DELETE"}
    answer = await asked(guarded, "POST", "/admin/v1/policies/categories/default", headers, b"{}")
    assert answer.status == 405
    assert (await asked(guarded, "GET", "/admin/v1/policies/categories/default", headers)).status == 200


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "HEAD", "SEARCH"])
async def test_unknown_methods_are_a_405(guarded: Proxy, method: str) -> None:
    answer = await asked(guarded, method, "/admin/v1/policies", {"authorization": f"Bearer {OPERATOR}"})
    assert answer.status in (400, 405), answer.body


async def test_a_path_tells_its_methods(guarded: Proxy) -> None:
    headers = {"authorization": f"Bearer {READER}"}
    for method in ("OPTIONS", "PATCH"):
        told = await asked(guarded, method, "/admin/v1/policies", {**headers, "content-type": "application/json"})
        assert told.status == {"OPTIONS": 204, "PATCH": 405}[method]
        assert {"GET", "PUT"} <= set((told.get("allow") or "").split(", "))
    assert (await asked(guarded, "OPTIONS", "/admin/v1/nothing", headers)).status == 404


async def test_wrong_tokens_make_an_address_wait_and_a_right_one_is_no_way_round(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    from cacheproxy.serving import running

    clock = FakeClock()
    settings = proxy_settings(upstream.url, tmp_path, admin={"token": OPERATOR}, store={"url": "memory://"})
    async with running(settings, clock) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)
        for _ in range(WRONG_TOKENS_A_MINUTE):
            (await ask_admin(proxy, "GET", "/audit", token="wrong")).assert_problem(401)
        for token in ("wrong", OPERATOR):
            answer = await ask_admin(proxy, "GET", "/audit", token=token)
            answer.assert_problem(429, "too_many_wrong_tokens")
            assert answer.get("retry-after") == "6"
        assert (await asked(proxy, "GET", "/healthz", {})).status == 200
        clock.advance(6)
        assert (await ask_admin(proxy, "GET", "/audit", token=OPERATOR)).status == 200


async def test_a_virtual_key_is_no_admin_token(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    virtual = KeyFile(tmp_path).add()
    async with keyed_proxy(upstream.url, tmp_path, admin={"token": OPERATOR}) as proxy:
        assert (await proxy.ask(chat(), key=virtual)).status == 200
        for path in ("/policies", "/entries", "/audit", "/config"):
            (await ask_admin(proxy, "GET", path, token=virtual)).assert_problem(401)
        for method, path in (("GET", "/admin/v1/entries"), ("PUT", "/admin/v1/policies"), ("GET", "/metrics")):
            told = await proxy.call(method, path, {"authorization": f"Bearer {virtual}"}, b"{}")
            assert told.status == 404


async def test_the_data_port_has_no_admin_routes(guarded: Proxy, upstream: ScriptedUpstream) -> None:
    headers = {"authorization": f"Bearer {OPERATOR}", "content-type": "application/json"}
    for route, methods in ROLES.items():
        if route.startswith("/admin"):
            for method in methods:
                answer = await guarded.call(method, target(route), headers, b"{}" if method != "GET" else None)
                assert answer.status == 404, (method, route)
    for path in ("/v1/../admin/v1/audit", "/v1/%2e%2e/admin/v1/audit", "/v1//admin/v1/audit", "/V1/../metrics"):
        answer = await guarded.call("GET", path, headers)
        assert b"deeds" not in answer.body
    assert all(call.target.startswith("/v1") for call in upstream.requests)


async def test_a_read_token_alone_does_not_start(tmp_path: Path) -> None:
    settings = proxy_settings("http://127.0.0.1:9/v1", tmp_path, admin={"read_token": READER})
    with pytest.raises(ConfigError, match=r"admin\.read_token"):
        async with started(settings):
            pass


async def test_a_read_token_that_is_the_operators_does_not_start(tmp_path: Path) -> None:
    tokens = {"token": OPERATOR, "read_token": OPERATOR}
    with pytest.raises(ConfigError, match=r"admin\.read_token") as refused:
        async with started(proxy_settings("http://127.0.0.1:9/v1", tmp_path, admin=tokens)):
            pass
    assert OPERATOR not in refused.value.message


async def test_without_a_token_nothing_but_loopback_starts(tmp_path: Path) -> None:
    settings = proxy_settings("http://127.0.0.1:9/v1", tmp_path, server={"admin_host": "0.0.0.0"})
    with pytest.raises(ConfigError, match=r"server\.admin_host is not loopback"):
        async with started(settings):
            pass


# Browsers


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8081",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "rebind.127.0.0.1.sslip.io",
        "169.254.169.254",
        "0.0.0.0",
        "admin@evil.example",
        "evil.example#localhost",
        "localhost/evil",
        "localhost:port",
        "[::1",
        "proxy.test.evil.example",
        "127.1",
        "2130706433",
    ],
)
async def test_a_foreign_host_is_refused_whatever_the_token(guarded: Proxy, proxy: Proxy, host: str) -> None:
    for of, headers in ((proxy, {}), (guarded, {"authorization": f"Bearer {OPERATOR}"})):
        data = request_bytes("GET", "/admin/v1/policies", headers.items(), host=host)
        assert answered(await send_raw(of.admin_url, data, "GET")).status in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8081", "127.0.0.1", "127.0.0.53:1", "[::1]:8081", HOST])
async def test_our_own_names_are_answered(proxy: Proxy, host: str) -> None:
    data = request_bytes("GET", "/admin/v1/policies", host=host)
    assert (await send_raw(proxy.admin_url, data, "GET")).status == 200


async def test_no_host_at_all_is_refused(proxy: Proxy) -> None:
    data = b"GET /admin/v1/policies HTTP/1.0\r\n\r\n"
    assert (await send_raw(proxy.admin_url, data, "GET")).status == 421


CROSS_SITE = {
    "another origin": {"origin": "https://evil.example"},
    "a page on another local port": {"origin": "http://localhost:3000"},
    "an opaque origin": {"origin": "null"},
    "an extension": {"origin": "chrome-extension://abcdef"},
    "a suffix": {"origin": f"http://{HOST}.evil.example"},
    "userinfo": {"origin": f"http://{HOST}@evil.example"},
    "a form, by metadata alone": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    "a sibling site": {"sec-fetch-site": "same-site"},
}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("sent", CROSS_SITE.values(), ids=CROSS_SITE)
async def test_another_sites_page_is_refused(proxy: Proxy, sent: dict[str, str], method: str) -> None:
    path = "/admin/v1/explain" if method == "POST" else "/admin/v1/policies/categories/default?dry_run=true"
    body = b'{"text": "hi"}' if method == "POST" else None
    answer = await asked(proxy, method, path, {"content-type": "application/json", **sent}, body)
    answer.assert_problem(403, "cross_site")
    assert answer.get("access-control-allow-origin") is None


@pytest.mark.parametrize(
    "sent", [{"origin": f"http://{HOST}"}, {"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin"}]
)
async def test_our_own_page_and_the_address_bar_are_answered(proxy: Proxy, sent: dict[str, str]) -> None:
    assert (await asked(proxy, "GET", "/admin/v1/policies", sent)).status == 200


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/xml"],
)
@pytest.mark.parametrize("route", ["/explain", "/policies/rollback", "/purge", "/policies/validate"])
async def test_a_body_that_a_form_could_send_is_refused(proxy: Proxy, route: str, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = await asked(proxy, "POST", f"/admin/v1{route}", headers, b'{"version": 1}')
    answer.assert_problem(415, "not_json")


async def test_answers_are_never_kept_by_browsers_nor_guessed_at(proxy: Proxy) -> None:
    answer = await asked(proxy, "GET", "/admin/v1/policies", {})
    assert (answer.get("cache-control"), answer.get("x-content-type-options")) == ("no-store", "nosniff")


# Forged targets


class Canary:
    """A socket nobody may connect to."""

    def __init__(self) -> None:
        self.connections = 0

    async def __aenter__(self) -> Canary:
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _on_connection(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


def forged(port: int) -> list[str]:
    """Return URLs that reach the canary if anybody follows them, and such as reach what a cloud keeps secret."""
    local = [
        "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1", "0.0.0.0", "0", "2130706433",
        "0x7f000001", "0x7f.1", "0x7f.0.0.1", "017700000001", "0177.0.0.1", "0177.1", "[::1]", "[::]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "127.0.0.1.nip.io",
        "user@127.0.0.1", "user:pass@localhost",
        "proxy.test@127.0.0.1", "127.0.0.1%2523@localhost", "127。0。0。1", "①②⑦.0.0.1", "%31%32%37.0.0.1",
    ]  # fmt: skip
    return [
        *(f"http://{host}:{port}/v1/models" for host in local),
        f"https://127.0.0.1:{port}/",
        f"//127.0.0.1:{port}/",
        f"http:\\\\127.0.0.1:{port}\\",
        f"gopher://127.0.0.1:{port}/_GET%20/",
        f"ftp://127.0.0.1:{port}/x",
        f"dict://127.0.0.1:{port}/info",
        f"ws://127.0.0.1:{port}/",
        f"jar:http://127.0.0.1:{port}!/",
        f"http://127.0.0.1:{port}#@api.openai.com/",
        f"http://api.openai.com@127.0.0.1:{port}/",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://2852039166/latest/meta-data/",
        "http://0xa9fea9fe/",
        "http://100.100.100.200/",
    ]


_watched: list[list[Any]] = []
_watching = False


def _on_event(event: str, args: tuple[Any, ...]) -> None:
    if _watched and event in ("socket.connect", "socket.getaddrinfo"):
        address = args[1] if event == "socket.connect" else args[:2]
        _watched[-1].append((event, address))


@contextmanager
def connections_watched() -> Iterator[list[Any]]:
    """Collect every address that anything in this process looks up or connects to."""
    global _watching
    if not _watching:  # an audit hook cannot be taken out again
        sys.addaudithook(_on_event)
        _watching = True
    _watched.append([])
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


def is_ours(seen: tuple[str, Any], ports: set[int]) -> bool:
    """Whether an address is that of the proxy or of its backend, or none of a network."""
    _, address = seen
    return not isinstance(address, tuple) or (address[0] in ("127.0.0.1", b"127.0.0.1") and address[1] in ports)


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


async def test_the_set_of_forged_urls_is_large_enough() -> None:
    assert len(set(forged(1))) >= 40


async def test_no_forged_url_is_connected_to_by_the_data_port(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    ports = {port_of(url) for url in (proxy.url, proxy.admin_url, upstream.url)}
    async with Canary() as canary:
        with connections_watched() as seen:
            for url in forged(canary.port):
                plain = url.encode("utf-8").decode("latin-1")
                for path in (plain, f"/v1/{plain}", f"/v1/models?url={plain}", f"/v1/files/{plain}/content"):
                    await raw(proxy.url, "GET", path, headers)
                host = plain.partition("//")[2].partition("/")[0]
                for forging in ({"host": host}, {"x-forwarded-host": host}, {"forwarded": f"host={host}"}):
                    await raw(proxy.url, "GET", "/v1/models", {**headers, **forging})
                for forging in ({"x-original-url": plain}, {"x-rewrite-url": plain}, {"referer": plain}):
                    await raw(proxy.url, "GET", "/v1/models", {**headers, **forging})
                content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
                body = chat("x", api_base=url, base_url=url, messages=[{"role": "user", "content": content}])
                await raw(proxy.url, "POST", CHAT, headers, msgspec.json.encode(body))
        assert canary.connections == 0
    assert seen
    assert upstream.calls > len(forged(1))
    assert [one for one in seen if not is_ours(one, ports)] == []


async def test_no_forged_url_is_connected_to_by_the_admin_port(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    ports = {port_of(url) for url in (proxy.url, proxy.admin_url, upstream.url)}
    pack = (await ask_admin(proxy, "GET", "/policies")).json()
    async with Canary() as canary:
        with connections_watched() as seen:
            for url in forged(canary.port):
                bodies: list[tuple[str, str, object]] = [
                    ("POST", "/explain", {"text": url}),
                    ("POST", "/explain", {"request": chat(url, api_base=url)}),
                    ("POST", "/policies/validate", {"pack": pack | {"name": url, "extends": url}}),
                    ("POST", "/policies/validate", {"pack": url}),
                    ("PUT", "/policies?dry_run=true", pack | {"description": url, "name": url}),
                    ("PATCH", "/policies/categories/default?dry_run=true", {"description": url, "url": url}),
                    ("POST", "/purge?dry_run=true", {"similar_to": {"text": url, "radius": 0.01}}),
                    ("POST", "/warm?dry_run=true", {"items": [{"text": url, "answer": url, "url": url}]}),
                    ("POST", "/sweep", {"category": url, "thresholds": [0.9]}),
                ]
                for method, path, body in bodies:
                    answer = await ask_admin(proxy, method, path, body)
                    assert answer.status < 500, (method, path, url, answer.body)
                await raw(proxy.admin_url, "GET", url.encode("utf-8").decode("latin-1"), {})
        assert canary.connections == 0
    assert [one for one in seen if not is_ours(one, ports)] == []
    assert upstream.calls == 0


def ascii_of(url: str) -> str:
    return url.encode("ascii", "ignore").decode()


async def raw(to: str, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> None:
    """Send what may be no HTTP at all, and read whatever comes."""
    given = dict(headers)
    lines = [f"{method} {path} HTTP/1.1", f"host: {given.pop('host', HOST)}"]
    lines += [f"{name}: {value}" for name, value in given.items()]
    lines += [f"content-length: {len(body)}"] if body is not None else []
    data = "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1") + (body or b"")
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(to))
    try:
        writer.write(data)
        async with asyncio.timeout(20):
            await reader.read()
    except ConnectionResetError:
        pass
    finally:
        writer.close()


async def test_a_redirect_to_a_forged_url_is_not_followed(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    async with Canary() as canary:
        for url in forged(canary.port):
            upstream.always(answer(b"", status=302, headers=[("location", ascii_of(url))]))
            assert (await proxy.ask(chat(url), key=key)).status == 502
        assert canary.connections == 0


async def test_a_body_beyond_the_cap_is_refused_without_being_held(proxy: Proxy) -> None:
    before = (await ask_admin(proxy, "GET", "/policies")).body
    for path in ("/policies", "/policies/categories/default"):
        refused = await ask_admin(proxy, "PUT", path, b'{"description": "' + b"x" * (11 * 1024 * 1024) + b'"}')
        refused.assert_problem(413)
    assert (await ask_admin(proxy, "GET", "/policies")).body == before
