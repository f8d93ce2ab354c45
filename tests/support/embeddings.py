"""Requests for embeddings: asked, kept, and what is told in return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.embeddings_wire import PATH, request, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.proxy import Answered, Proxy

TEXTS = ["the first", "a second one", "and the third of them", "4"]
ENCODINGS = ["float", "base64"]


async def ask(
    proxy: Proxy, value: object, key: str | None, headers: Mapping[str, str] | None = None, **fields: Any
) -> Answered:
    return await proxy.ask(request(value, **fields), key=key, headers=headers, target=PATH)


async def fill(proxy: Proxy, value: object, key: str, **fields: Any) -> Answered:
    """Ask something new and return once a repetition is a hit."""
    first = await ask(proxy, value, key, **fields)
    assert (first.status, first.outcome) == (200, "miss"), (first.body[:300], first.reason)
    hit = await ask(proxy, value, key, headers={"cache-control": "only-if-cached"}, **fields)
    assert hit.status == 200, hit.reason
    return first


async def held(proxy: Proxy, value: object, key: str, **fields: Any) -> bool:
    headers = {"cache-control": "only-if-cached"}
    return (await ask(proxy, value, key, headers=headers, **fields)).status == 200


def direct(value: object, **fields: Any) -> dict[str, Any]:
    """What the backend says to the whole request."""
    return whole(request(value, **fields))


def data(*embeddings: object) -> list[dict[str, Any]]:
    return [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(embeddings)]
