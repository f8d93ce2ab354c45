"""The admin port, asked as an operator does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tests.support.proxy import answered
from tests.support.rawhttp import request_bytes, send_raw

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.proxy import Answered, Proxy

V1 = "/admin/v1"


async def ask_admin(
    proxy: Proxy,
    method: str,
    path: str,
    body: object = None,
    *,
    token: str = "",
    headers: Mapping[str, str] | None = None,
) -> Answered:
    """Ask for `/admin/v1` and a path; a body goes as JSON, bytes as they are."""
    sent = {"content-type": "application/json"} if body is not None else {}
    sent |= {"authorization": f"Bearer {token}"} if token else {}
    data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
    request = request_bytes(method, V1 + path, (sent | dict(headers or {})).items(), data)
    return answered(await send_raw(proxy.admin_url, request, method))


async def told(proxy: Proxy, path: str) -> Any:
    """Return what a GET answers, which must be a success."""
    answer = await ask_admin(proxy, "GET", path)
    assert answer.status == 200, answer.body[:300]
    return answer.json()
