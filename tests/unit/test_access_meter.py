from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.access.meter import TAIL_BYTES, Meter, MeteredUpstream
from cacheproxy.errors import UpstreamBroken
from cacheproxy.ports import Call
from tests.support import openai_wire
from tests.support.backend import Backend, Told

if TYPE_CHECKING:
    from collections.abc import Sequence

JSON, SSE = "application/json", "text/event-stream; charset=utf-8"
CHAT = "/v1/chat/completions"


def tokens(*chunks: bytes, kind: str = JSON, path: str = CHAT, request: bytes = b"") -> int:
    meter = Meter(kind, path)
    for chunk in chunks:
        meter.feed(chunk)
    return meter.tokens(request)


def usage(**fields: Any) -> bytes:
    return openai_wire.encode({"choices": [], "usage": fields, "system_fingerprint": None})


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (usage(prompt_tokens=5, completion_tokens=7, total_tokens=12), 12),
        (usage(prompt_tokens=5, total_tokens=5), 5),
        (usage(input_tokens=5, output_tokens=7, total_tokens=12), 12),
        (usage(input_tokens=5, output_tokens=7), 12),
        (usage(prompt_tokens=5, completion_tokens=7), 12),
        (usage(prompt_tokens=5), 5),
        (usage(total_tokens=0), 0),
        (b'{"usage" : \n { "total_tokens" : 9 } }', 9),
        (b'{"usage":{"total_tokens":1},"nested":{"usage":{"total_tokens":8}}}', 8),
        (b'{"usage":{"details":{"a":[1,{}]},"total_tokens":31}}', 31),
    ],
)
def test_the_backends_own_count_is_taken(body: bytes, count: int) -> None:
    assert tokens(body) == count
    assert tokens(*(body[i : i + 1] for i in range(len(body)))) == count


@pytest.mark.parametrize(
    "strange",
    [
        b'{"usage":{"total_tokens":-5}}',
        b'{"usage":{"total_tokens":1e9}}',
        b'{"usage":{"total_tokens":true}}',
        b'{"usage":{"total_tokens":99999999999999}}',
        b'{"usage":{"total_tokens":"7"}}',
        b'{"usage":{}}',
        b'{"usage":null}',
        b'{"usage":{"total_tokens":7',
        b'{"usage":' + b'{"a":' * 20_000,
        b'"usage":{' * 5_000,
    ],
)
def test_a_count_that_makes_no_sense_is_no_count(strange: bytes) -> None:
    assert tokens(strange, path="/v1/files") == 0
    assert tokens(strange) == -(-len(strange) // 4)


def test_words_of_the_model_about_usage_count_nothing() -> None:
    body = openai_wire.encode({"choices": [{"message": {"content": '{"usage": {"total_tokens": 1}}'}}]})
    assert tokens(body, path="/v1/files") == 0


def test_a_streams_usage_is_its_last() -> None:
    events = openai_wire.events("It is Paris.", include_usage=True)
    counted = tokens(*events, kind=SSE)
    assert counted == openai_wire.usage("", "It is Paris.")["total_tokens"] or counted > 0
    assert tokens(b"".join(events), kind=SSE) == counted


def test_a_stream_without_usage_is_estimated_from_its_text_and_the_request() -> None:
    text = "one two three four five six seven eight"
    events = openai_wire.events(text)
    request = b"x" * 100
    assert tokens(*events, kind=SSE, request=request) == -(-(len(text) + 100) // 4)
    whole = b"".join(events)
    for size in (1, 7, 1000):
        pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
        assert tokens(*pieces, kind=SSE, request=request) == -(-(len(text) + 100) // 4)


def test_a_long_stream_without_usage_is_estimated_whole() -> None:
    text = "lorem ipsum " * 20_000
    whole = b"".join(openai_wire.events(text))
    pieces = [whole[i : i + 4096] for i in range(0, len(whole), 4096)]
    assert tokens(*pieces, kind=SSE) == pytest.approx(len(text) / 4, rel=0.01)


def test_pictures_in_a_request_are_not_estimated_as_text() -> None:
    picture = b'{"url":"data:image/png;base64,' + b"QUJD" * 10_000 + b'"}'
    assert tokens(*openai_wire.events(""), kind=SSE, request=picture) < 20


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/v1/files", JSON, b'{"id":"file-1"}'),
        ("/v1/images/generations", JSON, b'{"data":[{"b64_json":"' + b"QUJD" * 50_000 + b'"}]}'),
        ("/v1/audio/speech", "audio/mpeg", b"\x00" * 100_000),
        ("/v1/embeddings", JSON, b'{"data":[{"embedding":[' + b"0.1," * 1000 + b"0.1]}]}"),
    ],
)
def test_what_tells_no_usage_and_is_no_text_costs_nothing(path: str, kind: str, body: bytes) -> None:
    assert tokens(body, kind=kind, path=path) == 0


def test_a_meter_never_holds_more_than_its_tail() -> None:
    meter = Meter(SSE, CHAT)
    for size in (1, 100, 10_000, 300_000, 65_536, 16_384) * 5:
        meter.feed(b"x" * size)
        assert len(meter._tail) <= TAIL_BYTES
    meter.feed(usage(total_tokens=3))
    assert meter.tokens(b"") == 3


# Around a backend


def call(charges: list[int] | None, *, method: str = "POST", body: bytes = b"") -> Call:
    return Call(method=method, target=CHAT, headers=(), body=body, charge=None if charges is None else charges.append)


async def drain(told: Told, sent: Call) -> list[bytes]:
    backend = Backend()
    backend.play(told)
    async with await MeteredUpstream(backend).send(sent) as answer:
        return [chunk async for chunk in answer.chunks()]


PIECES: Sequence[bytes] = [b'{"usage":', b'{"total_tokens":', b"42}}"]


async def test_an_answer_is_charged_once_and_passes_as_it_is() -> None:
    charges: list[int] = []
    assert await drain(Told(steps=PIECES), call(charges)) == PIECES
    assert charges == [42]


@pytest.mark.parametrize(
    ("told", "method"),
    [(Told(status=429, steps=PIECES), "POST"), (Told(status=500, steps=PIECES), "POST"), (Told(steps=PIECES), "GET")],
)
async def test_errors_and_reads_cost_nothing(told: Told, method: str) -> None:
    charges: list[int] = []
    await drain(told, call(charges, method=method))
    assert charges == []


async def test_an_answer_that_breaks_off_is_charged_for_what_came() -> None:
    charges: list[int] = []
    events = openai_wire.events("one two three four")
    headers = (("Content-Type", SSE),)
    with pytest.raises(UpstreamBroken):
        await drain(Told(headers=headers, steps=[*events[:3], UpstreamBroken("cut")]), call(charges, body=b"12345678"))
    assert len(charges) == 1
    assert charges[0] >= 2


async def test_a_reader_who_leaves_pays_for_what_came() -> None:
    charges: list[int] = []
    backend = Backend()
    backend.play(Told(steps=PIECES))
    async with await MeteredUpstream(backend).send(call(charges)) as answer:
        await anext(aiter(answer.chunks()))
    assert len(charges) == 1
    assert backend.open == 0


async def test_a_call_that_nobody_counts_is_not_wrapped() -> None:
    backend = Backend()
    answer = await MeteredUpstream(backend).send(call(None))
    assert type(answer).__name__ == "BackendAnswer"
