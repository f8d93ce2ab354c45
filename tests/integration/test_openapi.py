"""Both ports say what they are, in documents that any OpenAPI tool reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from cacheproxy.http.openapi import document
from tests.support.proxy import QUESTION, Proxy, chat, proxy_settings, started
from tests.support.rawhttp import request_bytes, send_raw

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADMIN = "/admin/v1/openapi.json"


async def told(url: str, target: str) -> dict[str, Any]:
    response = await send_raw(url, request_bytes("GET", target), "GET")
    assert (response.status, response.get("content-type")) == (200, "application/json")
    OpenAPIV31SpecValidator(response.json()).validate()
    described: dict[str, Any] = response.json()
    return described


async def test_the_data_port_describes_every_route_of_its_own(proxy: Proxy) -> None:
    described = await told(proxy.url, "/openapi.json")
    assert {path: list(item) for path, item in described["paths"].items()} == {
        "/v1/chat/completions": ["post"],
        "/v1/completions": ["post"],
        "/v1/responses": ["post"],
        "/v1/embeddings": ["post"],
        "/v1/models": ["get"],
        "/v1/cache/feedback": ["post"],
        "/healthz": ["get"],
        "/readyz": ["get"],
        "/openapi.json": ["get"],
    }
    assert described == msgspec.json.decode(msgspec.json.encode(document()))


async def test_the_admin_port_describes_what_is_there(proxy: Proxy) -> None:
    described = await told(proxy.admin_url, ADMIN)
    assert {"/healthz", "/readyz", "/metrics", "/admin/v1/explain", ADMIN} <= set(described["paths"])
    assert not any("{path}" in path for path in described["paths"])


async def test_the_admin_document_is_guarded_as_the_rest(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    settings = proxy_settings(upstream.url, tmp_path, admin={"token": "letmein"}, store={"url": "memory://"})
    async with started(settings) as proxy:
        for headers, status in (([], 401), ([("authorization", "Bearer letmein")], 200)):
            assert (await send_raw(proxy.admin_url, request_bytes("GET", ADMIN, headers), "GET")).status == status


async def test_a_wrong_method_says_which_is_right(proxy: Proxy) -> None:
    for method, target, allowed in (
        ("POST", "/openapi.json", "GET, HEAD"),
        ("GET", "/v1/cache/feedback", "POST"),
        ("PUT", "/readyz", "GET, HEAD"),
    ):
        response = await proxy.call(method, target, body=b"{}")
        response.assert_problem(405, "method_not_allowed")
        assert response.get("allow") == allowed


async def test_every_control_and_answer_header_is_described(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    components = document()["components"]
    for name, control in components["parameters"].items():
        if not name.startswith("x-cacheproxy-"):
            continue
        value = {"number": "1", "string": control["schema"].get("enum", ["default"])[0]}[control["schema"]["type"]]
        assert (await proxy.ask(chat(), key=key, headers={name: value})).status == 200, name
    (await proxy.ask(chat(), key=key, headers={"x-cacheproxy-unheard-of": "1"})).assert_problem(400)
    first = await proxy.fill(chat("And this?"), key=key)
    for answer in (first, await proxy.ask(chat("And this?"), key=key), await proxy.ask(chat(QUESTION, n=3), key=key)):
        ours = {name for name, _ in answer.headers if name.startswith("x-cacheproxy-") or name == "cache-status"}
        assert ours <= set(components["headers"])
