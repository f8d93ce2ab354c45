"""What operators do on the admin port, in one call each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.admin import ask_admin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.proxy import Answered, Proxy


async def admin(
    proxy: Proxy, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
) -> Answered:
    """Send one request below /admin/v1/ and return the answer; `body` is encoded unless it is bytes."""
    return await ask_admin(proxy, method, f"/{path}", body, headers=headers)


async def told(proxy: Proxy, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Return the JSON of an answer that must be a success."""
    response = await admin(proxy, method, path, body)
    assert response.status in (200, 201, 202), (response.status, response.body[:500])
    decoded: dict[str, Any] = response.json()
    return decoded


async def tenant_of(proxy: Proxy, key: str) -> str:
    """Return the tenant (hex) that a key stands for."""
    explained = await told(proxy, "POST", "explain", {"text": "whose?", "model": "m", "key": key})
    return str(explained["tenant"])
