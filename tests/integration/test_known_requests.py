"""A request that comes again byte by byte is not read again, and nobody can tell, least of all another caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import pytest_asyncio

from cacheproxy.serving import Running, running
from tests.support.openai_wire import completion
from tests.support.polling import eventually
from tests.support.proxy import Proxy, chat, proxy_settings
from tests.support.upstream import answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cacheproxy.http.route import Understood
    from cacheproxy.model import Query
    from cacheproxy.query.known import Known
    from tests.support.proxy import Answered
    from tests.support.upstream import Received, ScriptedUpstream, Step

pytestmark = pytest.mark.asyncio(loop_scope="module")

_OWN = ("age", "date", "x-cacheproxy-lookup-ms", "cache-status", "content-length")
"""What one answer's head tells of its own moment; an id may change its length."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(proxy_settings(module_upstream.url, tmp_path_factory.mktemp("data"))) as live:
        yield live


@pytest.fixture
def proxy(live: Running) -> Proxy:
    return Proxy(url=live.url, admin_url=live.admin_url)


@pytest.fixture
def known(live: Running) -> Known[Understood[Query]]:
    live.pipeline.known.clear()
    return live.pipeline.known


async def familiar(proxy: Proxy, key: str, body: dict[str, Any], **headers: str) -> list[Answered]:
    """Ask until the request is known, and once more; return the answers from the cache."""
    await proxy.fill(body, key=key, headers=headers)
    return [await proxy.ask(body, key=key, headers=headers) for _ in range(3)]


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_a_known_request_is_answered_as_an_unknown_one(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, known: Known[Any], form: dict[str, Any]
) -> None:
    first, *others = await familiar(proxy, key, chat(user="somebody", **form))
    assert len(known) > 0
    for other in others:
        assert (other.status, other.tier, other.content) == (200, "exact", first.content)
        told = [[one for one in answer.headers if one[0] not in _OWN] for answer in (first, other)]
        assert told[0] == told[1]
        assert other.whole["id"] != first.whole["id"]
    assert len(upstream.requests) == 1


OTHERWISE: dict[str, dict[str, Any]] = {
    "key": {"key": "sk-somebody-else"},
    "organisation": {"headers": {"openai-organization": "other"}},
    "namespace": {"headers": {"x-cacheproxy-namespace": "other"}},
    "beta": {"headers": {"openai-beta": "assistants=v2"}},
    "provider": {"headers": {"x-portkey-provider": "other"}},
    "query string": {"target": "/v1/chat/completions?api-version=2"},
    "no-cache": {"headers": {"cache-control": "no-cache"}},
    "pragma": {"headers": {"pragma": "no-cache"}},
    "cloudflare's": {"headers": {"cf-aig-skip-cache": "true"}},
    "tier": {"headers": {"x-cacheproxy-tier": "off"}},
    "too old": {"headers": {"cache-control": "max-age=0"}},
}


@pytest.mark.parametrize("otherwise", OTHERWISE.values(), ids=OTHERWISE)
async def test_the_same_body_asked_otherwise_is_another_request(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, known: Known[Any], otherwise: dict[str, Any]
) -> None:
    body = chat(f"What is the number {uuid4().hex}?")
    await familiar(proxy, key, body)
    before = len(upstream.requests)
    asked = await proxy.ask(body, **{"key": key, **otherwise})
    assert asked.outcome in ("miss", "bypass")
    assert len(upstream.requests) == before + 1


async def test_an_error_of_the_same_body_is_told_again(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, known: Known[Any]
) -> None:
    await familiar(proxy, key, chat())
    for _ in range(2):
        (await proxy.ask(chat(), key=key, headers={"x-cacheproxy-tier": "none"})).assert_problem(400)
        (await proxy.ask(chat(), key=key, headers={"content-encoding": "gzip"})).assert_problem(415)


async def test_what_may_not_be_stored_is_not_remembered(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, known: Known[Any]
) -> None:
    await proxy.fill(chat(), key=key)
    known.clear()
    for _ in range(3):
        secret = await proxy.ask(chat(), key=key, headers={"cache-control": "no-store"})
        assert secret.tier == "exact"
    assert len(known) == 0


async def test_a_miss_is_not_remembered(proxy: Proxy, upstream: ScriptedUpstream, key: str, known: Known[Any]) -> None:
    await proxy.ask(chat(temperature=2.0), key=key)
    await proxy.ask(chat("What is the weather in Oslo today?"), key=key)
    assert len(known) == 0


async def test_what_a_known_request_was_answered_by_may_go(
    live: Running, proxy: Proxy, upstream: ScriptedUpstream, key: str, known: Known[Any]
) -> None:
    answers = await familiar(proxy, key, chat())
    entry = answers[-1].get("x-cacheproxy-entry")
    assert entry is not None
    assert len(known) > 0
    await live.pipeline.forget([entry])
    assert len(known) == 0, "its words are not held beyond its entry"
    assert (await proxy.ask(chat(), key=key)).outcome == "miss"


async def test_an_entry_that_expires_leaves_no_request_known(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, known: Known[Any]
) -> None:
    upstream.always(answer(completion("Soon gone."), headers=[("cache-control", "max-age=4, must-revalidate")]))
    await familiar(proxy, key, chat())
    assert len(known) > 0
    await eventually(lambda: len(known) == 0, "a sweep came by")


async def test_an_erasure_leaves_no_request_known(
    live: Running, proxy: Proxy, upstream: ScriptedUpstream, key: str, known: Known[Any]
) -> None:
    await familiar(proxy, key, chat())
    assert live.pipeline.forget_questions() > 0
    assert len(known) == 0


async def test_headers_that_an_answer_was_chosen_by_are_looked_at_each_time(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, known: Known[Any]
) -> None:
    def script(request: Received) -> Sequence[Step]:
        told = completion(f"in {request.header('accept-language')}")
        return answer(told, headers=[("vary", "accept-language")])

    upstream.always(script)
    for language in ("en", "de"):
        await familiar(proxy, key, chat(), **{"accept-language": language})
    for language in ("en", "de", "en"):
        told = await proxy.ask(chat(), key=key, headers={"accept-language": language})
        assert (told.tier, told.content) == ("exact", f"in {language}")
