"""Row 17: parsers under a hundred thousand damaged inputs each: a value or a refusal, and nothing lost on the way.

The property tests state what is right; these only dig deeper, from a seed.
"""

from __future__ import annotations

import contextlib
import os
import random
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.dialect.chat import CHAT
from cacheproxy.dialect.choices import fold_events as fold_chat
from cacheproxy.dialect.responses_fold import fold_events as fold_response
from cacheproxy.dialect.splitter import ArraySplitter
from cacheproxy.dialect.sse import Splitter, data_of, name_of
from cacheproxy.errors import InvalidRequest, RequestError
from cacheproxy.model import Controls, Reply, Scope
from cacheproxy.query.canonical import canonical, decode, deeper_than
from cacheproxy.query.chat import read_chat
from cacheproxy.query.completions import read_completion
from cacheproxy.query.controls import read_body_controls, read_controls
from cacheproxy.query.directives import LONGEST_S, read_directives, read_targeted
from cacheproxy.query.responses import read_responses
from tests.property.test_canonical_form import strictly_read
from tests.support.openai_wire import encode, events
from tests.support.proxy import chat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CASES = int(os.environ.get("FUZZ_CASES", "100000"))
SEED = int(os.environ.get("FUZZ_SEED", "20260803"))
SCOPE = Scope(tenant="t", namespace="")

STREAMS = [
    b"".join(events("one two three")),
    b'data: {"id":"c","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","argumen'
    b'ts":"{"}}]}}]}\n\ndata: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n',
    b'event: response.created\r\ndata: {"type":"response.created","response":{"id":"r","output":[]}}\r\n\r\n: a\r\n\r\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","output_index":0,"content_index":0,'
    b'"delta":"x"}\n\nevent: response.completed\ndata: {"type":"response.completed","response":{"id":"r","status":'
    b'"completed","output":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"x"}]}]}}\n\n',
    b"\xef\xbb\xbfdata\rdata:\r\r\rid: 1\n\nretry: 5\r\n\r\n:\n\ndata: a\ndata: b\n\n",
]
BODIES = [
    encode(chat("What is the tallest tower?")),
    encode(
        chat('\U0001f5fc \u2028 \\ " e\u0301') | {"tools": [{"type": "function", "function": {"name": "f"}}], "n": 1}
    ),
    b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"x"}]}],"cache":{"ttl":5}}',
    b'{"model":"m","prompt":["a","b"],"temperature":0.7,"logit_bias":{"50256":-100},"a":[[[[[]]]],{"b":{"c":null}}]}',
    b'{"object":"list","data":[{"embedding":[1.5,-2e-7],"index":0},{"embedding":"AAAA","index":1}],"usage":{}}',
]
VALUES = [
    b"no-store, no-cache, max-age=5, min-fresh=1, max-stale, only-if-cached, stale-if-error=60",
    b'private="set-cookie, x", max-age="60", community="UCI"',
    b'max-age=3600;a=b, stale-while-revalidate=5, x=(1 2 3);q=?1, y=:YWJj:, z=%"f%c3%bc"',
    b"exact",
    b"a,b,c",
    b"0.95",
    b"86400",
]
WORDS = [
    *(b"\r\n", b"\n\n", b"\r", b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b'"', b"\\", b"\\u", b"\\ud800", b"\\u0000"),
    *(b"{", b"}", b"[", b"]", b":", b",", b"=", b";", b" ", b"\t", b"data: ", b"event: ", b"[DONE]", b"null", b"true"),
    *(b"-1", b"1e999", b"NaN", b"9" * 30, b"0.0", b"[" * 70, b'{"a":' * 70, b"max-age", b"no-store", b"\xef\xbb\xbf"),
]


def damaged(chance: Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds with one to five small damages."""
    data = chance.choice(seeds)
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data = data[:at] + chance.choice(WORDS) + data[at:]
            case 1:
                data = data[:at] + data[at + chance.choice((1, 1, 2, 8, 40)) :]
            case 2:
                data = data[:at] + bytes((chance.randrange(256),)) + data[at + 1 :]
            case 3:
                data = data[:at] + data[at : at + chance.choice((1, 5, 30))] * 2 + data[at:]
            case _:
                other = chance.choice(seeds)
                data = data[:at] + other[chance.randrange(len(other)) :]
    return data


def cases(seeds: Sequence[bytes]) -> Iterator[tuple[Random, bytes]]:
    chance = random.Random(SEED)
    for _ in range(CASES):
        yield chance, damaged(chance, seeds)


def cut(chance: Random, data: bytes) -> list[bytes]:
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(5)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def test_event_streams_are_split_alike_however_they_are_cut() -> None:
    for chance, data in cases(STREAMS):
        whole, piecewise = Splitter(10**6), Splitter(10**6)
        found = whole.feed(data)
        again = [event for piece in cut(chance, data) for event in piecewise.feed(piece)]
        rest = whole.flush()
        assert (again, piecewise.flush()) == (found, rest), data
        assert b"".join(found) + rest == data
        for event in found:
            data_of(event)
            name_of(event)


@pytest.mark.parametrize("fold", [lambda told: fold_chat(CHAT, told), fold_response], ids=["chat", "responses"])
def test_streams_make_a_reply_or_a_reason(fold: Callable[[list[bytes]], Reply | str]) -> None:
    for _, data in cases(STREAMS):
        made = fold(Splitter(10**6).feed(data))
        if isinstance(made, Reply):
            msgspec.json.encode(made.body)
        else:
            assert made, data


def test_bodies_have_one_canonical_form_or_are_refused() -> None:
    for _, data in cases(BODIES):
        try:
            value = decode(data, 64)
        except RequestError:
            continue
        written = canonical(value)
        assert canonical(decode(written, 64)) == written, data
        assert strictly_read(data) == value, data
        assert not deeper_than(data, 64)


def test_what_the_reference_refuses_is_refused() -> None:
    for _, data in cases(BODIES):
        try:
            strictly_read(data)
        except (ValueError, RecursionError):
            with pytest.raises(InvalidRequest):
                decode(data, 16)


@pytest.mark.parametrize("read", [read_chat, read_completion, read_responses])
def test_any_object_is_read_as_a_query(read: Callable[..., object]) -> None:
    for _, data in cases(BODIES):
        try:
            body = decode(data, 64)
        except RequestError:
            continue
        with contextlib.suppress(RequestError):
            read(body, SCOPE, Controls(), b"")


def test_controls_are_read_or_refused() -> None:
    names = [
        b"cache-control",
        b"pragma",
        *(b"x-cacheproxy-" + name for name in (b"tier", b"tags", b"ttl", b"threshold")),
    ]
    for chance, data in cases(VALUES):
        directives, targeted = read_directives([data.decode("latin-1")]), read_targeted([data.decode("latin-1")])
        for told in (directives, targeted):
            seconds = told.least("max-age") if told else None
            assert seconds is None or 0 <= seconds <= LONGEST_S, data
        try:
            controls, _ = read_controls([(chance.choice(names), data)])
        except InvalidRequest:
            continue
        assert controls.threshold is None or 0 <= controls.threshold <= 1, data
        assert all(tag.isascii() and tag.isprintable() for tag in controls.tags), data


def test_a_bodys_cache_object_is_read_or_refused() -> None:
    for _, data in cases(
        [b'{"no-cache":true,"ttl":5,"s-maxage":1.5,"namespace":"a","use-cache":false,"no-store":null}']
    ):
        try:
            read_body_controls(Controls(), "", decode(data, 8))
        except RequestError:
            continue


def test_an_array_is_taken_apart_alike_however_it_is_cut() -> None:
    for chance, data in cases(BODIES[4:]):
        whole, piecewise = ArraySplitter("data"), ArraySplitter("data")
        whole.feed(data)
        for piece in cut(chance, data):
            piecewise.feed(piece)
        assert (whole.elements, whole.rest) == (piecewise.elements, piecewise.rest), data
