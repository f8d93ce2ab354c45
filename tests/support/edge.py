"""Raw requests to the edge, and what a refusal looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.openai_wire import encode
from tests.support.proxy import Proxy, chat, openai_error

if TYPE_CHECKING:
    from tests.support.rawhttp import Response

CHAT = "/v1/chat/completions"


async def assert_alive(proxy: Proxy, key: str) -> None:
    assert (await proxy.ask(chat("Are you still there?"), key=key)).status == 200


def assert_refused(response: Response, *statuses: int) -> dict[str, Any]:
    assert response.status in (statuses or (400,)), (response.status, response.body[:300])
    return openai_error(response)


START = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = encode(chat())
LENGTH = b"content-length: %d\r\n" % len(BODY)
