from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.upstream.local import MODEL_ID
from tests.support.local_model import LocalClient, ScriptedModel, chat, serving
from tests.support.polling import eventually, eventually_true

if TYPE_CHECKING:
    from pathlib import Path

HELLO = ["Hello", "Ġworld", "."]


async def stream(client: LocalClient, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
    """Return the last event's data and the chunks before it."""
    async with client.post(chat(stream=True, **fields)) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        events = (await response.text()).split("\n\n")
    assert events.pop() == ""
    data = [event.removeprefix("data: ") for event in events]
    return data[-1], [json.loads(item) for item in data[:-1]]


async def test_an_answer_is_a_chat_completion(tmp_path: Path) -> None:
    async with serving(ScriptedModel(HELLO), tmp_path) as client:
        status, answer = await client.ask()
    assert status == 200
    assert (answer["object"], answer["model"]) == ("chat.completion", MODEL_ID)
    assert answer["id"].startswith("chatcmpl-")
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello world.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


async def test_a_stream_has_role_pieces_finish_and_end_mark(tmp_path: Path) -> None:
    async with serving(ScriptedModel(HELLO), tmp_path) as client:
        end, chunks = await stream(client)
    assert end == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": " world"},
        {"content": "."},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_stream_tells_its_usage_where_asked(tmp_path: Path) -> None:
    async with serving(ScriptedModel(HELLO), tmp_path) as client:
        _, chunks = await stream(client, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_an_answer_of_nothing_is_whole_in_both_forms(tmp_path: Path) -> None:
    async with serving(ScriptedModel([]), tmp_path) as client:
        _, answer = await client.ask()
        end, chunks = await stream(client)
    assert answer["choices"][0]["message"]["content"] == ""
    assert end == "[DONE]"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_prompt_over_the_context_window_is_a_400_before_any_byte(tmp_path: Path, streamed: bool) -> None:
    async with serving(ScriptedModel(HELLO), tmp_path) as client:
        status, answer = await client.ask("x" * 100, stream=streamed)
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == "messages"


async def test_the_list_holds_the_one_model(tmp_path: Path) -> None:
    async with serving(ScriptedModel(HELLO), tmp_path) as client:
        _, listed = await client.get("/v1/models")
        _, one = await client.get(f"/v1/models/{MODEL_ID}")
        status, other = await client.get("/v1/models/gpt-5")
    assert listed == {"object": "list", "data": [one]}
    assert (status, other["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/embeddings", 404, "not_found"),
        ("/", 404, "not_found"),
        ("/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
async def test_other_routes_are_refused_in_openai_form(tmp_path: Path, path: str, status: int, code: str) -> None:
    async with serving(ScriptedModel(HELLO), tmp_path) as client:
        got, answer = await client.get(path)
    assert (got, answer["error"]["code"]) == (status, code)


async def test_a_bad_body_is_refused_in_openai_form(tmp_path: Path) -> None:
    async with serving(ScriptedModel(HELLO), tmp_path) as client:
        status, answer = await client.ask(n=2)
    assert (status, answer["error"]["param"]) == (400, "n")


async def test_one_more_than_the_queue_holds_is_told_to_come_back(tmp_path: Path) -> None:
    model = ScriptedModel(HELLO, gated=True)
    async with serving(model, tmp_path, queue=2) as client:
        asked = [asyncio.create_task(client.ask()) for _ in range(3)]
        await eventually_true(lambda: _holds(client, 3), "one answered, two waiting")
        async with client.post(chat()) as refused:
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) > 0
            assert (await refused.json())["error"]["code"] == "upstream_busy"
        model.gate.release(9)
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200, 200]
        await eventually_true(lambda: _holds(client, 0), "all places free")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_while_it_is_answered_frees_the_worker(tmp_path: Path, streamed: bool) -> None:
    model = ScriptedModel(HELLO, gated=True)
    async with serving(model, tmp_path) as client:
        leaving = asyncio.create_task(client.ask(stream=streamed))
        await eventually(lambda: model.begun == 1, "the answer began")
        if streamed:
            model.gate.release()
        await _leave(leaving)
        await eventually_true(lambda: _holds(client, 0), "the worker is free", within_s=1)
        model.gate.release(3)
        assert (await client.ask())[0] == 200


async def test_a_client_that_leaves_the_queue_is_never_answered(tmp_path: Path) -> None:
    model = ScriptedModel(HELLO, gated=True)
    async with serving(model, tmp_path) as client:
        first = asyncio.create_task(client.ask())
        await eventually(lambda: model.begun == 1, "the first is being answered")
        second = asyncio.create_task(client.ask())
        await eventually_true(lambda: _holds(client, 2), "the second waits")
        await _leave(second)
        await eventually_true(lambda: _holds(client, 1), "the second has left")
        model.gate.release(3)
        assert (await first)[0] == 200
        assert model.begun == 1


async def test_a_failure_is_a_500_and_the_next_request_is_answered(tmp_path: Path) -> None:
    model = ScriptedModel(HELLO)
    async with serving(model, tmp_path) as client:
        model.failure = RuntimeError("out of memory")
        status, answer = await client.ask()
        assert (status, answer["error"]["code"]) == (500, "internal_error")
        assert "out of memory" not in answer["error"]["message"]
        model.failure = None
        assert (await client.ask())[0] == 200


async def test_a_failure_inside_a_stream_ends_it_without_the_end_mark(tmp_path: Path) -> None:
    model = ScriptedModel(HELLO, gated=True)
    model.gate.release()
    async with serving(model, tmp_path) as client, client.post(chat(stream=True)) as response:
        assert b"assistant" in await response.content.readline()
        model.failure = RuntimeError("out of memory")
        model.gate.release()
        rest = await response.text()
    assert "internal_error" in rest
    assert "[DONE]" not in rest


async def _holds(client: LocalClient, places: int) -> bool:
    return await client.places() == places


async def _leave(asked: asyncio.Task[Any]) -> None:
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
