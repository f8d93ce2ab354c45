"""The official `openai` client changes its base URL and nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pydantic import BaseModel

from tests.support.openai_wire import MODEL
from tests.support.polling import eventually_true
from tests.support.proxy import PARAPHRASE, QUESTION, UNRELATED, chat
from tests.support.sse import fold
from tests.support.upstream import answer

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRESH = ("id", "created")


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def fields(answered: dict[str, Any]) -> dict[str, Any]:
    """An answer without what is new in every answer."""
    return {name: value for name, value in answered.items() if name not in (*FRESH, "object")}


def assert_fresh(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert second["id"]
    assert second["id"] != first["id"]
    assert second["created"] > first["created"]


async def kept(proxy: Proxy, key: str, body: dict[str, Any]) -> None:
    await eventually_true(lambda: proxy.cached(body, key=key), "the answer is kept")


async def ask_whole(client: openai.AsyncOpenAI, text: str) -> dict[str, Any]:
    completion = await client.chat.completions.create(model=MODEL, messages=user(text))
    return completion.model_dump(exclude_unset=True)


async def ask_streamed(client: openai.AsyncOpenAI, text: str) -> dict[str, Any]:
    stream = await client.chat.completions.create(
        model=MODEL, messages=user(text), stream=True, stream_options={"include_usage": True}
    )
    return fold([chunk.model_dump(exclude_unset=True) async for chunk in stream])


ASK = {"whole": ask_whole, "streamed": ask_streamed}


@pytest.mark.parametrize("then", ASK)
@pytest.mark.parametrize("first", ASK)
async def test_a_hit_equals_the_live_answer_in_every_field(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str, first: str, then: str
) -> None:
    live = await ASK[first](openai_client, QUESTION)
    await kept(proxy, key, chat())
    hit = await ASK[then](openai_client, QUESTION)
    assert upstream.calls == 1
    assert fields(hit) == fields(live)
    assert_fresh(live, hit)


@pytest.mark.parametrize("form", ASK)
async def test_a_paraphrase_is_answered_from_the_cache(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str, form: str
) -> None:
    live = await ASK[form](openai_client, QUESTION)
    await kept(proxy, key, chat())
    assert fields(await ASK[form](openai_client, PARAPHRASE)) == fields(live)
    assert upstream.calls == 1


@pytest.mark.parametrize("form", ASK)
async def test_an_unrelated_question_goes_to_the_backend(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str, form: str
) -> None:
    await ASK[form](openai_client, QUESTION)
    await kept(proxy, key, chat())
    assert UNRELATED in (await ASK[form](openai_client, UNRELATED))["choices"][0]["message"]["content"]
    assert upstream.calls == 2


async def test_the_synchronous_client_gets_hits_too(
    sync_openai_client: openai.OpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    def whole() -> dict[str, Any]:
        completion = sync_openai_client.chat.completions.create(model=MODEL, messages=user(QUESTION))
        return completion.model_dump(exclude_unset=True)

    def streamed() -> dict[str, Any]:
        options: Any = {"include_usage": True}
        stream = sync_openai_client.chat.completions.create(
            model=MODEL, messages=user(QUESTION), stream=True, stream_options=options
        )
        return fold([chunk.model_dump(exclude_unset=True) for chunk in stream])

    live = await asyncio.to_thread(whole)
    await kept(proxy, key, chat())
    assert fields(await asyncio.to_thread(whole)) == fields(live)
    assert fields(await asyncio.to_thread(streamed)) == fields(live)
    assert upstream.calls == 1


class Verdict(BaseModel):
    answer: str
    call: int


async def test_parsed_answers_are_cached_for_the_same_request_only(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    async def parse(text: str) -> Verdict | None:
        completion = await openai_client.chat.completions.parse(
            model=MODEL, messages=user(text), response_format=Verdict
        )
        return completion.choices[0].message.parsed

    live = await parse(QUESTION)
    sent = upstream.requests[0].json()
    await kept(proxy, key, sent)
    assert await parse(QUESTION) == live
    assert upstream.calls == 1
    rephrased = await parse(PARAPHRASE)
    assert rephrased is not None
    assert rephrased.answer == PARAPHRASE
    assert upstream.calls == 2


async def test_the_raw_response_shows_what_the_cache_did(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    async def ask() -> tuple[ChatCompletion, str | None]:
        raw = await openai_client.chat.completions.with_raw_response.create(model=MODEL, messages=user(QUESTION))
        return raw.parse(), raw.headers.get("x-cacheproxy-outcome")

    live, first = await ask()
    await kept(proxy, key, chat())
    hit, second = await ask()
    assert (first, second) == ("miss", "hit")
    assert fields(hit.model_dump()) == fields(live.model_dump())
    assert upstream.calls == 1


async def test_the_streaming_response_is_the_same_bytes_apart_from_id_and_time(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    async def ask() -> tuple[str | None, dict[str, Any]]:
        create = openai_client.chat.completions.with_streaming_response.create
        async with create(model=MODEL, messages=user(QUESTION)) as response:
            body: Any = await response.json()
            return response.headers.get("x-cacheproxy-outcome"), body

    first, live = await ask()
    await kept(proxy, key, chat())
    second, hit = await ask()
    assert (first, second) == ("miss", "hit")
    assert fields(hit) == fields(live)
    assert upstream.calls == 1


async def test_the_stream_helper_assembles_a_hit(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    async def ask() -> str | None:
        async with openai_client.chat.completions.stream(model=MODEL, messages=user(QUESTION)) as stream:
            return (await stream.get_final_completion()).choices[0].message.content

    live = await ask()
    await kept(proxy, key, upstream.requests[0].json() | {"stream": True})
    assert await ask() == live
    assert upstream.calls == 1


async def test_the_model_list_comes_from_the_backend(openai_client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in openai_client.models.list()] == [MODEL]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
async def test_backend_errors_raise_the_clients_own_exceptions(
    openai_client: openai.AsyncOpenAI,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    status: int,
    kind: type[openai.APIStatusError],
) -> None:
    error = {"message": "as the backend said", "type": "some_type", "param": "model", "code": "some_code"}
    upstream.always(answer({"error": error}, status=status))
    with pytest.raises(kind, match="as the backend said") as caught:
        await ask_whole(openai_client, QUESTION)
    assert (caught.value.code, caught.value.param) == ("some_code", "model")


async def test_a_refusal_of_the_proxy_raises_bad_request(
    openai_client: openai.AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await openai_client.chat.completions.create(
            model=MODEL, messages=user(QUESTION), extra_headers={"x-cacheproxy-thresold": "0.9"}
        )
    assert "x-cacheproxy-thresold" in str(caught.value)
    assert upstream.calls == 0
